"""A carrier's SMSC that does as a test says, over a real socket: for what a well-behaved simulator never does."""

import asyncio
import time

from caplai.smpp.pdu import Command, ShortMessage, Status
from caplai.smpp.session import BindRequested, Closed, Request, RequestLost, Response, Role, Session


class Carrier:
    """Accepts binds and keeps what is submitted; `deliver` sends a text and gives back the answer's status."""

    def __init__(self, *, password="secret", tls=None):
        self.password = password
        self.tls = tls
        self.binds = []
        self.submitted = []
        self.submitted_at = []
        self.statuses = []
        """What to answer the next submits with; then ESME_ROK."""
        self.answer_submits = True
        self.connections = []
        self._news = asyncio.Condition()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.drop()
        self._server.close()

    async def _serve(self, reader, writer):
        connection = _Connection(self, reader, writer)
        self.connections.append(connection)
        try:
            await connection.run()
        finally:
            self.connections.remove(connection)
            await self.tell()

    async def tell(self):
        async with self._news:
            self._news.notify_all()

    async def until(self, condition, seconds=10.0):
        """Wait until the condition holds."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(condition)

    def drop(self):
        """Cut every connection, in the middle of whatever is under way."""
        for connection in self.connections:
            connection.writer.transport.abort()

    @property
    def receiver(self):
        return next(c for c in self.connections if c.bound in ("BIND_TRANSCEIVER", "BIND_RECEIVER"))

    async def bound(self, count=1):
        await self.until(lambda: sum(bool(c.bound) for c in self.connections) == count)

    async def deliver(self, text, source="84327000686", *, wait=True, **fields):
        """Deliver a text; returns the command_status of the answer, or a future of it."""
        values = {"source_ton": 1, "source_npi": 1, "destination": "8079", "short_message": text} | fields
        if isinstance(values["short_message"], str):
            values["short_message"] = values["short_message"].encode("ascii")
        values = {"command_id": Command.DELIVER_SM} | values
        answer = self.receiver.request(ShortMessage(source=source, **values))
        return await asyncio.wait_for(answer, 10) if wait else answer

    def texts(self):
        return [pdu.short_message.decode("ascii") for pdu in self.submitted]

    async def replies(self, count, seconds=10.0):
        await self.until(lambda: len(self.submitted) >= count, seconds)
        return self.texts()


class _Connection:
    def __init__(self, carrier, reader, writer):
        self.carrier, self.reader, self.writer = carrier, reader, writer
        self.session = Session(Role.SMSC, window=100, now=time.monotonic())
        self.bound = None

    def request(self, pdu):
        answer = asyncio.get_running_loop().create_future()
        self.session.request(pdu, time.monotonic(), answer)
        self.flush()
        return answer

    def flush(self):
        self.writer.write(self.session.data_to_send())

    async def run(self):
        while data := await self.reader.read(65536):
            for event in self.session.receive(data, time.monotonic()):
                self.handle(event)
            self.flush()
            await self.carrier.tell()
        for event in self.session.closed_by_peer(time.monotonic()):
            self.handle(event)

    def handle(self, event):
        now = time.monotonic()
        match event:
            case BindRequested(pdu):
                self.carrier.binds.append(pdu)
                if pdu.password == self.carrier.password:
                    self.session.accept_bind(pdu, "smsc", now)
                    self.bound = (
                        pdu.kind.name if pdu.kind.name.startswith("BIND") else f"BIND_{pdu.kind.name}"
                    )
                else:
                    self.session.refuse_bind(pdu, Status.ESME_RINVPASWD, now)
            case Request(pdu):
                self.carrier.submitted.append(pdu)
                self.carrier.submitted_at.append(now)
                if self.carrier.answer_submits:
                    status = self.carrier.statuses.pop(0) if self.carrier.statuses else 0
                    self.session.respond(pdu, status, message_id=str(len(self.carrier.submitted)), now=now)
            case Response():
                event.context.set_result(event.pdu.status)
            case RequestLost():
                if not event.context.done():
                    event.context.cancel()
            case Closed():
                self.flush()
                self.writer.close()
