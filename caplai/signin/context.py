"""What every page may say: what the site is called, and how to get a password by texting."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils.translation import get_language


def site(request: HttpRequest) -> dict[str, Any]:
    """A context processor: `site_name`, for the base page's header; `how`, for its footer; `remembered`: this device
    is, for some account.
    """
    remembered = bool(request.COOKIES.get(settings.DEVICE_COOKIE_NAME))
    return {"site_name": site_name(), "how": how_to_get_a_password(), "remembered": remembered}


def site_name() -> str:
    """What the site is called, in the language that is active."""
    return settings.CAPLAI.service.name_in(get_language())


def how_to_get_a_password() -> dict[str, str]:
    """What to text, where to, and a link that writes it (RFC 5724)."""
    service = settings.CAPLAI.service
    text = f"{service.keyword} {service.command}"
    return {
        "text": text,
        "short_code": service.short_codes[0],
        "sample": f"{text} 0123456789",
        "link": f"sms:{service.short_codes[0]}?body={text.replace(' ', '%20')}%20",
    }
