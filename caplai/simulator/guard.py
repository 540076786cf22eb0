"""Who may come in at the simulator's HTTP port, and in which language.

Nobody signs in, since nothing here is real; but a site that is open in another tab must not be able to text in
our name or to read along. So every request has to name a host of ours (a rebound DNS name does not), and what
changes anything has to come from our own page (a form), to be JSON, which no foreign form can send, or to use
a method that none has.
"""

import ipaddress
import json
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

LANGUAGES: Final = ("vi", "en")
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # not no-referrer: browsers then send `Origin: null` with our own form
    "Cache-Control": "no-store",
}


def guard(own_host: str) -> Middleware:
    """Refuse hosts that are not ours, and give every answer its headers. `own_host`: what the server listens on."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_ours(request.host, own_host):
            return web.Response(status=421, text="This host is not served here.\n", headers=HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as refusal:
            refusal.headers.update(HEADERS)
            raise
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    return guarded


def _is_ours(host: str, own_host: str) -> bool:
    # A name can be rebound to 127.0.0.1 by whoever owns it; an address cannot.
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in ("localhost", own_host):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def ask_for_own_form(request: web.Request) -> None:
    """Raises HTTPForbidden unless the form was sent from a page of ours."""
    # Browsers name the page a form was sent from; one that names none is not to be told from a stranger.
    came_from = request.headers.get("Origin") or request.headers.get("Referer", "")
    try:
        ours = urlsplit(came_from).netloc == request.host
    except ValueError:
        ours = False
    if not ours:
        raise web.HTTPForbidden(text="This form was not sent from this page.\n")


async def read_json(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request. Raises HTTPUnsupportedMediaType or HTTPBadRequest."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="Content-Type must be application/json.\n")
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise refuse("a JSON object is expected")
    return body


def refuse(why: str) -> web.HTTPBadRequest:
    """The API's refusal, to be raised: `{"error": why}`."""
    return web.HTTPBadRequest(text=json.dumps({"error": why}), content_type="application/json")


def language_of(request: web.Request) -> str:
    """What the address asks for, else what was asked for before, else Vietnamese."""
    wanted = (request.query.get("lang"), request.cookies.get("lang"))
    return next((language for language in wanted if language in LANGUAGES), LANGUAGES[0])


def remember(request: web.Request, response: web.Response) -> None:
    """Keep the language that the address asks for."""
    if (language := request.query.get("lang", "")) in LANGUAGES:
        response.set_cookie("lang", language, max_age=31_536_000, httponly=True, samesite="Lax")
