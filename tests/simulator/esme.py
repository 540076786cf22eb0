"""A small ESME over a real socket, and a decorator that runs a test inside an event loop."""

import asyncio
import functools
import ssl
from collections.abc import Callable
from typing import Any

from caplai.smpp.pdu import BindKind, Command, ShortMessage, ShortMessageResp, Simple, Status, encode
from caplai.smpp.session import (
    BindRefused,
    Bound,
    Closed,
    Ignored,
    Request,
    Response,
    Role,
    Session,
)
from caplai.smpp.text import UDH_INDICATOR, decode, parse_udh, split
from caplai.smpp.text import encode as encode_text

TAKE, SILENCE = 0, None


def in_loop(test: Callable[..., Any]) -> Callable[..., None]:
    """Run an async test with asyncio.run; a test that hangs fails after 20 s."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20):
                await test(*args, **kwargs)

        asyncio.run(limited())

    return run


class Esme:
    """`answer` gives the status for each deliver_sm, or SILENCE. What comes in goes to queues."""

    def __init__(
        self,
        port: int,
        kind: BindKind = BindKind.TRANSCEIVER,
        answer: Any = None,
        tls: ssl.SSLContext | None = None,
        **login: str,
    ):
        self._port = port
        self._kind = kind
        self._tls = tls
        self._answer = answer or (lambda pdu: TAKE)
        self._login = {"system_id": "caplai", "password": "secret", **login}
        self.bind_status: int | None = None
        self.delivered: asyncio.Queue[ShortMessage] = asyncio.Queue()
        self.responses: asyncio.Queue[ShortMessageResp] = asyncio.Queue()
        self.ignored: asyncio.Queue[int] = asyncio.Queue()
        """The command_id of each PDU that meant nothing."""
        self.closed = ""

    async def __aenter__(self) -> "Esme":
        self._loop = asyncio.get_running_loop()
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls)
        self.session = Session(Role.ESME, now=self._loop.time())
        self.session.bind(self._kind, now=self._loop.time(), **self._login)
        self._flush()
        while self.bind_status is None and not self.closed:
            await self._read()
        self._reading = asyncio.create_task(self._read_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        self.drop()

    def drop(self) -> None:
        """The line breaks: no unbind, nothing more is answered."""
        self._writer.transport.abort()

    def turn_deaf(self) -> None:
        """The line holds, but nothing is read any more."""
        self._reading.cancel()

    def submit(self, text: str, to: str, **fields: Any) -> None:
        """Send a text to a phone, in parts if it is long."""
        coding, _ = encode_text(text)
        payloads = split(text, reference=7)
        for payload in fields.pop("order", list)(payloads):
            values = {
                "source": "8079",
                "destination": to,
                "destination_ton": 1,
                "destination_npi": 1,
                "data_coding": coding,
                "esm_class": UDH_INDICATOR if len(payloads) > 1 else 0,
                "short_message": payload,
            }
            self.session.request(ShortMessage(Command.SUBMIT_SM.value, **values | fields), self._loop.time())
        self._flush()

    async def statuses(self, count: int) -> list[int]:
        """The command_status of the next answers to submits."""
        return [(await self.responses.get()).status for _ in range(count)]

    def ask(self) -> None:
        """Send an enquire_link whose answer, if one comes, is in `ignored`."""
        self._writer.write(encode(Simple(Command.ENQUIRE_LINK, sequence=0x7000_0000)))

    async def unbind(self) -> None:
        self.session.unbind(self._loop.time())
        self._flush()
        await self.ended()

    async def ended(self) -> None:
        """Wait until the session is closed; `closed` says why."""
        await self._reading

    def _flush(self) -> None:
        self._writer.write(self.session.data_to_send())

    async def _read_on(self) -> None:
        while not self.closed:
            await self._read()

    async def _read(self) -> None:
        now = self._loop.time()
        try:
            data = await self._reader.read(65536)
        except ConnectionError:  # a reset: the peer had not read all
            data = b""
        for event in self.session.receive(data, now) if data else self.session.closed_by_peer(now):
            match event:
                case Bound():
                    self.bind_status = Status.ESME_ROK
                case BindRefused(status):
                    self.bind_status = status
                case Request():
                    self.delivered.put_nowait(event.pdu)
                    status = self._answer(event.pdu)
                    if status is not SILENCE:
                        self.session.respond(event, status, now=now)
                case Response():
                    self.responses.put_nowait(event.pdu)
                case Ignored():
                    self.ignored.put_nowait(event.command_id)
                case Closed():
                    self.closed = event.reason
        self._flush()


def text_of(pdu: ShortMessage) -> str:
    payload = pdu.payload
    if pdu.esm_class & UDH_INDICATOR:
        _, payload = parse_udh(payload)
    return decode(pdu.data_coding, payload).text
