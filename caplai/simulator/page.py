"""The virtual phones: a page for people (it needs no JavaScript), a small JSON API for scripts."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from caplai.simulator import markup
from caplai.simulator.citizens import Citizens
from caplai.simulator.guard import HEADERS, ask_for_own_form, guard, language_of, read_json, refuse, remember
from caplai.simulator.panel import Panel
from caplai.simulator.phones import Message, Phones, State, read_number

SHOWN = 20
MOST_CHARACTERS = 1000
ANSWER_EXPECTED = 60.0  # seconds after a message during which the page without JavaScript looks again
HEARTBEAT = 15.0  # seconds between the comments that show whether the browser is still there

Send = Callable[[str, str, str], Message]

_STATIC = {
    "phone.css": "text/css",
    "phone.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_SHORT_OR_LONG_NUMBER = re.compile(r"[0-9]{3,15}")


class Page:
    """The aiohttp application over `phones` and `citizens`.

    `send(phone, number, text)` puts a message on its way; `words` are what stands before a code in it; `host`
    is the name the server listens on. `panel` is the room for the carrier's troubles.
    """

    def __init__(
        self,
        phones: Phones,
        citizens: Citizens,
        send: Send,
        panel: Panel,
        *,
        short_code: str = "8079",
        words: str = "BH MK",
        host: str = "127.0.0.1",
        clock: Callable[[], float],
    ) -> None:
        self._phones = phones
        self._citizens = citizens
        self._send = send
        self._panel = panel
        self._short_code = short_code
        self._words = words
        self._host = host
        self._clock = clock
        self._closing = asyncio.Event()
        folder = Path(__file__).parent / "static"
        self._files = {name: (folder / name).read_bytes() for name in _STATIC}

    def application(self) -> web.Application:
        app = web.Application(middlewares=[guard(self._host)], client_max_size=16 * 1024)
        app.router.add_get("/", self._show)
        app.router.add_post("/send", self._send_form)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/api/phones", self._list)
        app.router.add_get("/api/phones/{msisdn}", self._read)
        app.router.add_post("/api/phones/{msisdn}/messages", self._send_json)
        app.router.add_get("/api/events", self._events)
        self._panel.add_to(app.router)
        app.on_shutdown.append(self._close)
        return app

    async def _close(self, app: web.Application) -> None:
        self._closing.set()  # the event streams end, so that the server need not wait for them

    # The page

    async def _show(self, request: web.Request) -> web.Response:
        written = request.query.get("phone", "")
        phone = read_number(written)
        error = "wrong_phone" if written and phone is None else ""
        response = self._render(request, phone, draft=request.query.get("text", ""), error=error)
        remember(request, response)
        return response

    async def _send_form(self, request: web.Request) -> web.Response:
        ask_for_own_form(request)
        form = await request.post()
        phone = read_number(str(form.get("phone", "")))
        # A textarea sends its lines with CR LF (HTML); a phone sends LF.
        number, text = str(form.get("to", "")), str(form.get("text", "")).replace("\r\n", "\n")
        error = "wrong_phone" if phone is None else _refusal(number, text)
        if phone is None or error:
            return self._render(request, phone, to=number, draft=text, error=error, status=400)
        self._send(phone, number.strip(), text)
        raise web.HTTPSeeOther("/?" + urlencode({"phone": phone}))

    def _render(
        self,
        request: web.Request,
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
            draft = f"{self._words} {owners[0].code}"  # the first message is one tap away
        waiting = bool(
            messages
            and not messages[-1].incoming
            and messages[-1].state is not State.FAILED
            and self._clock() - messages[-1].at < ANSWER_EXPECTED
        )
        view = markup.View(
            language=language_of(request),
            search=search,
            found=found[:SHOWN],
            more=len(found) > SHOWN,
            citizens=len(self._citizens),
            typed_number=read_number(search),
            phone=phone,
            owners=owners,
            conversation=conversation,
            short_code=self._short_code,
            words=self._words,
            troubles=self._panel.troubles,
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
        body = await read_json(request)
        phone = self._phone_of(request.match_info["msisdn"])
        number, text = body.get("to", self._short_code), body.get("text")
        if not isinstance(number, str) or not isinstance(text, str):
            raise refuse("`to` and `text` must be texts")
        if error := _refusal(number, text):
            raise refuse(markup.WORDS["en"][error])
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

        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
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
            raise refuse("this is no phone number")
        return phone


def _refusal(number: str, text: str) -> str:
    """The key of the words that say why this cannot be sent, or nothing."""
    if not _SHORT_OR_LONG_NUMBER.fullmatch(number.strip()):
        return "wrong_to"
    if not text.strip() or len(text) > MOST_CHARACTERS:
        return "wrong_text"
    return ""


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
