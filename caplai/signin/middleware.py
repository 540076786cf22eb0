"""Who asks (behind which proxies), in which language and charset, and the headers of every page."""

import ipaddress
from collections.abc import Callable
from functools import cached_property

from django.conf import settings
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse
from django.utils import translation

Next = Callable[[HttpRequest], HttpResponse]

LANGUAGE_COOKIE = "lang"
_YEAR = 365 * 24 * 3600
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)


_PERMISSIONS = ", ".join(
    [
        "publickey-credentials-get=(self)",
        "publickey-credentials-create=(self)",
        *(f"{feature}=()" for feature in ("camera", "geolocation", "microphone", "payment", "usb")),
    ]
)


class Utf8Request(WSGIRequest):
    """A request that is read as UTF-8, as our pages send it, whatever charset it names. Django takes any codec that
    Python has, and fails outside its own handling of errors where that decodes no text (`hex`, `undefined`).
    """

    @property
    def encoding(self) -> None:
        return None

    @encoding.setter
    def encoding(self, value: str) -> None:
        pass


class TrustedProxy:
    """Believes X-Forwarded-For, X-Forwarded-Proto and X-Request-Id where, and as far as, a trusted proxy wrote them.

    REMOTE_ADDR becomes the right-most address that is no proxy of ours; anybody may have written what stands
    left of it. From any other peer the headers are taken away.
    """

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response

    @cached_property
    def proxies(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        return [ipaddress.ip_network(proxy, strict=False) for proxy in settings.CAPLAI.trusted_proxies]

    def __call__(self, request: HttpRequest) -> HttpResponse:
        meta = request.META
        forwarded = meta.pop("HTTP_X_FORWARDED_FOR", "")
        scheme = meta.pop("HTTP_X_FORWARDED_PROTO", "")
        request_id = meta.pop("HTTP_X_REQUEST_ID", None)
        client = _address(meta.get("REMOTE_ADDR", ""))
        if self._is_proxy(client):
            if scheme.split(",")[0].strip().lower() == "https":
                meta["wsgi.url_scheme"] = "https"
            entries = forwarded.split(",")
            while self._is_proxy(client) and entries and (nearer := _address(entries.pop())):
                client = nearer
            meta["REMOTE_ADDR"] = str(client)
            if request_id is not None:
                meta["HTTP_X_REQUEST_ID"] = request_id
        return self.get_response(request)

    def _is_proxy(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
        return address is not None and any(address in proxy for proxy in self.proxies)


def network(request: HttpRequest) -> str:
    """The network that a request came from: an IPv4 address, or the /64 of an IPv6 address."""
    address = _address(request.META.get("REMOTE_ADDR", ""))
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address) if address else "unknown"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, perhaps with a port, as proxies write it. IPv4 within IPv6 (RFC 4291, 2.5.5.2) is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class Headers:
    """The same strict policy for every answer, and nothing of it kept by a cache."""

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response["Content-Security-Policy"] = _POLICY
        response["Permissions-Policy"] = _PERMISSIONS
        response["Cross-Origin-Resource-Policy"] = "same-origin"
        response["Cache-Control"] = "no-store"
        return response


def chosen_language(request: HttpRequest) -> str | None:
    """The language that this person chose, now or before; None: they chose none."""
    known = dict(settings.LANGUAGES)
    asked, kept = request.GET.get("lang"), request.COOKIES.get(LANGUAGE_COOKIE)
    return next((one for one in (asked, kept) if one in known), None)


class Language:
    """Vietnamese, unless a person asked for another language (`?lang=en`, then a cookie), or what stands within
    decided.

    Not what the browser says: phones often speak English to people who do not.
    """

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        language = chosen_language(request) or settings.LANGUAGE_CODE
        with translation.override(language):
            request.LANGUAGE_CODE = language
            response = self.get_response(request)
        response.headers.setdefault("Content-Language", language)
        if request.GET.get("lang") == language != request.COOKIES.get(LANGUAGE_COOKIE):
            response.set_cookie(
                LANGUAGE_COOKIE,
                language,
                max_age=_YEAR,
                httponly=True,
                secure=settings.SESSION_COOKIE_SECURE,
                samesite="Lax",
            )
        return response
