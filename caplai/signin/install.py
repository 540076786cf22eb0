"""What makes the site one that a phone can install: the manifest, the service worker, the page without a network.

The worker keeps that page, the stylesheet and the icon, and never a page with anything of a person's.
"""

import hashlib

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.templatetags.static import static
from django.urls import reverse
from django.utils.translation import gettext as _

from caplai.signin.context import how_to_get_a_password, site_name

THEME = "#0b4a73"
"""The colour of the header, and of what a phone draws around the page (base.html has it, too)."""
_ICONS = (
    ("icon-192.png", "192x192", "any"),
    ("icon-512.png", "512x512", "any"),
    ("icon-full-192.png", "192x192", "maskable"),
    ("icon-full-512.png", "512x512", "maskable"),
)


def manifest(request: HttpRequest) -> HttpResponse:
    """The web app manifest (W3C). Browsers fetch it without cookies, so it is in Vietnamese."""
    svg = {"src": static("caplai.svg"), "sizes": "any", "type": "image/svg+xml", "purpose": "any"}
    icons = [
        {"src": static(name), "sizes": sizes, "type": "image/png", "purpose": purpose}
        for name, sizes, purpose in _ICONS
    ]
    home = reverse("home")
    return JsonResponse(
        {
            "id": home,
            "start_url": home,
            "scope": home,
            "name": site_name(),
            "short_name": _("Account"),
            "description": _("Sign in, and get a forgotten password back"),
            "lang": request.LANGUAGE_CODE,
            "dir": "ltr",
            "display": "standalone",
            "theme_color": THEME,
            "background_color": "#f2f5f7",
            "icons": [svg, *icons],
        },
        content_type="application/manifest+json",
        json_dumps_params={"ensure_ascii": False},
    )


def offline(request: HttpRequest) -> HttpResponse:
    """What the service worker shows without a network, in both languages: texting works all the same."""
    return HttpResponse(_offline_page())


def service_worker(request: HttpRequest) -> HttpResponse:
    """The service worker. It is another one, and fetched anew, whenever what it keeps has changed."""
    version = hashlib.sha256(_offline_page().encode()).hexdigest()[:12]
    return render(request, "signin/service-worker.js", {"version": version}, content_type="text/javascript")


def _offline_page() -> str:
    return render_to_string("signin/offline.html", {"how": how_to_get_a_password()})
