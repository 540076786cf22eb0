"""Lets pages in browsers be clients: CORS (Fetch, 3.3) on the endpoints that they call, and nowhere else.

An origin is let in where a public client has a redirect URI on it. Which client asks does not matter: a preflight names
none, a page has to read why a token is refused, and these endpoints look at what stands in the request and never at a
cookie. So credentials are not allowed, and what such a page can do anybody without a browser can do, too.
"""

from collections.abc import Callable
from functools import wraps
from urllib.parse import urlsplit

from allauth.idp.oidc.models import Client
from django.http import HttpRequest, HttpResponse
from django.utils.cache import patch_vary_headers

_PORTS = {"http": 80, "https": 443}
_SECONDS = 600


def for_pages(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """The view, for pages of public clients, too."""

    @wraps(view)
    def answer(request: HttpRequest, *args, **kwargs) -> HttpResponse:
        response = view(request, *args, **kwargs)
        patch_vary_headers(response, ["Origin"])
        asked = request.headers.get("Origin", "")
        if asked.startswith(("http://", "https://")) and _is_of_a_client(asked):
            response["Access-Control-Allow-Origin"] = asked
            response["Access-Control-Expose-Headers"] = "Retry-After, WWW-Authenticate"
            if request.method == "OPTIONS":
                response["Access-Control-Allow-Methods"] = response["Allow"]
                response["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
                response["Access-Control-Max-Age"] = str(_SECONDS)
        return response

    return answer


def origin_of(uri: str) -> str | None:
    """The origin of an http(s) address as browsers write it (RFC 6454, 6.2); None: it has none."""
    parts = urlsplit(uri)
    if parts.scheme not in _PORTS:
        return None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in (None, _PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _is_of_a_client(origin: str) -> bool:
    public = Client.objects.filter(type=Client.Type.PUBLIC)
    return any(origin == origin_of(uri) for client in public for uri in client.get_redirect_uris())
