"""The doors to the virtual phones: a page for people, a small JSON API for scripts.

The page needs no JavaScript. Nobody signs in, since nothing here is real; but a site that is open in
another tab must not be able to text in our name or to read along, so every request has to name a host of
ours (a rebound DNS name does not), and what changes anything has to come from our own page (a form) or to
be JSON, which no foreign form can send.
"""

import asyncio
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from caplai.simulator import markup
from caplai.simulator.citizens import Citizens
from caplai.simulator.phones import Message, Phones, State, read_number

SHOWN = 20
MOST_CHARACTERS = 1000
ANSWER_EXPECTED = 60.0  # seconds after a message during which the page without JavaScript looks again
HEARTBEAT = 15.0  # seconds between the comments that show whether the browser is still there

Send = Callable[[str, str, str], Message]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # not no-referrer: browsers then send `Origin: null` with our own form
    "Cache-Control": "no-store",
}
_STATIC = {
    "phone.css": "text/css",
    "phone.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_SHORT_OR_LONG_NUMBER = re.compile(r"[0-9]{3,15}")


class Page:
    """The aiohttp application over `phones` and `citizens`.

    `send(phone, number, text)` puts a message on its way; `host` is the name the server listens on.
    """

    def __init__(
        self,
        phones: Phones,
        citizens: Citizens,
        send: Send,
        *,
        short_code: str = "8079",
        words: str = "BH MK",
        host: str = "127.0.0.1",
        clock: Callable[[], float],
    ) -> None:
        self._phones = phones
        self._citizens = citizens
        self._send = send
        self._short_code = short_code
        self._host = host
        self._clock = clock
        self._closing = asyncio.Event()
        folder = Path(__file__).parent / "static"
        self._files = {name: (folder / name).read_bytes() for name in _STATIC}

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=16 * 1024)
        app.router.add_get("/", self._show)
        app.router.add_post("/send", self._send_form)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/api/phones", self._list)
        app.router.add_get("/api/phones/{msisdn}", self._read)
        app.router.add_post("/api/phones/{msisdn}/messages", self._send_json)
        app.router.add_get("/api/events", self._events)
        app.on_shutdown.append(self._close)
        return app

    async def _close(self, app: web.Application) -> None:
        self._closing.set()  # the event streams end, so that the server need not wait for them

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._is_ours(request.host):
            return web.Response(status=421, text="This host is not served here.\n", headers=_HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as refusal:
            refusal.headers.update(_HEADERS)
            raise
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    def _is_ours(self, host: str) -> bool:
        # A name can be rebound to 127.0.0.1 by whoever owns it; an address cannot.
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in ("localhost", self._host):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    # The page

    async def _show(self, request: web.Request) -> web.Response:
        language = request.query.get("lang", "")
        chosen = language in markup.LANGUAGES
        if not chosen:
            language = request.cookies.get("lang", "")
        written = request.query.get("phone", "")
        phone = read_number(written)
        error = "wrong_phone" if written and phone is None else ""
        response = self._render(request, language, phone, draft=request.query.get("text", ""), error=error)
        if chosen:
            response.set_cookie("lang", language, max_age=31_536_000, httponly=True, samesite="Lax")
        return response

    async def _send_form(self, request: web.Request) -> web.Response:
        # Browsers name the page a form was sent from; one that names none is not to be told from a stranger.
        came_from = request.headers.get("Origin") or request.headers.get("Referer", "")
        try:
            ours = urlsplit(came_from).netloc == request.host
        except ValueError:
            ours = False
        if not ours:
            raise web.HTTPForbidden(text="This form was not sent from this page.\n")
        form = await request.post()
        phone = read_number(str(form.get("phone", "")))
        # A textarea sends its lines with CR LF (HTML); a phone sends LF.
        number, text = str(form.get("to", "")), str(form.get("text", "")).replace("\r\n", "\n")
        error = "wrong_phone" if phone is None else _refusal(number, text)
        if phone is None or error:
            language = request.cookies.get("lang", "")
            return self._render(request, language, phone, to=number, draft=text, error=error, status=400)
        self._send(phone, number.strip(), text)
        raise web.HTTPSeeOther("/?" + urlencode({"phone": phone}))

    def _render(
        self,
        request: web.Request,
        language: str,
        phone: str | None,
        *,
        to: str = "",
        draft: str = "",
        error: str = "",
        status: int = 200,
    ) -> web.Response:
        search = request.query.get("search", "").strip()[:60]
        found = self._citizens.search(search, SHOWN + 1)
        owners = self._citizens.of_phone(phone) if phone else []
        conversation = self._phones.conversation(phone or "")
        messages = conversation.messages
        if not draft and not messages and not error and len(owners) == 1 and owners[0].code:
            draft = f"BH MK {owners[0].code}"  # the first message is one tap away
        waiting = bool(
            messages
            and not messages[-1].incoming
            and messages[-1].state is not State.FAILED
            and self._clock() - messages[-1].at < ANSWER_EXPECTED
        )
        view = markup.View(
            language=language if language in markup.LANGUAGES else markup.LANGUAGES[0],
            search=search,
            found=found[:SHOWN],
            more=len(found) > SHOWN,
            citizens=len(self._citizens),
            typed_number=read_number(search),
            phone=phone,
            owners=owners,
            conversation=conversation,
            short_code=self._short_code,
            to=to,
            draft=draft,
            error=error,
            waiting=waiting,
        )
        return web.Response(text=markup.page(view), content_type="text/html", status=status)

    async def _static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        charset = "utf-8" if name != "icon.svg" else None
        return web.Response(body=self._files[name], content_type=_STATIC[name], charset=charset)

    # The API

    async def _list(self, request: web.Request) -> web.Response:
        found = self._citizens.search(request.query.get("search", "").strip(), SHOWN)
        return web.json_response(
            {
                "citizens": len(self._citizens),
                "phones": [{"label": c.name, "phone": c.phone, "code": c.code} for c in found],
            }
        )

    async def _read(self, request: web.Request) -> web.Response:
        phone = self._phone_of(request.match_info["msisdn"])
        conversation = self._phones.conversation(phone)
        return web.json_response(
            {
                "phone": phone,
                "paid": conversation.paid,
                "messages": [_as_json(message) for message in conversation.messages],
            }
        )

    async def _send_json(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="Content-Type must be application/json.\n")
        phone = self._phone_of(request.match_info["msisdn"])
        try:
            body: Any = json.loads(await request.read())
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return _refuse("a JSON object is expected")
        number, text = body.get("to", self._short_code), body.get("text")
        if not isinstance(number, str) or not isinstance(text, str):
            return _refuse("`to` and `text` must be texts")
        if error := _refusal(number, text):
            return _refuse(markup.WORDS["en"][error])
        message = self._send(phone, number.strip(), text)
        return web.json_response({"id": message.id}, status=202)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: `change` with the id of the newest message, whenever something changed."""
        phone = self._phone_of(request.query.get("phone", ""))
        changed = asyncio.Event()
        newest = 0

        def note(message: Message) -> None:
            nonlocal newest
            newest = message.id
            changed.set()

        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        unsubscribe = self._phones.subscribe(note, phone)
        closing = asyncio.create_task(self._closing.wait())
        try:
            await response.prepare(request)
            await response.write(b"event: change\ndata: 0\n\n")  # what came before this stream was opened
            while not closing.done():
                change = asyncio.create_task(changed.wait())
                await asyncio.wait((change, closing), timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
                if changed.is_set():
                    changed.clear()
                    await response.write(b"event: change\ndata: %d\n\n" % newest)
                else:
                    await response.write(b": still here\n\n")
        except ConnectionError:
            pass  # the browser went away
        finally:
            closing.cancel()
            unsubscribe()
        return response

    def _phone_of(self, written: str) -> str:
        phone = read_number(written)
        if phone is None:
            raise web.HTTPBadRequest(
                text=json.dumps({"error": "this is no phone number"}), content_type="application/json"
            )
        return phone


def _refusal(number: str, text: str) -> str:
    """The key of the words that say why this cannot be sent, or nothing."""
    if not _SHORT_OR_LONG_NUMBER.fullmatch(number.strip()):
        return "wrong_to"
    if not text.strip() or len(text) > MOST_CHARACTERS:
        return "wrong_text"
    return ""


def _refuse(why: str) -> web.Response:
    return web.json_response({"error": why}, status=400)


def _as_json(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "incoming": message.incoming,
        "number": message.number,
        "text": message.text,
        "at": message.at,
        "state": message.state,
        "reason": message.reason,
    }
