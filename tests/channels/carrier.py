"""A carrier's SMSC that does as a test says, over a real socket: for what a well-behaved simulator never does."""

import asyncio
import time

from caplai.smpp.pdu import Command, Decoder, ShortMessage, Status
from caplai.smpp.session import BindRequested, Closed, Request, RequestLost, Response, Role, Session


class Carrier:
    """Accepts binds and keeps what is submitted; `deliver` sends a text and gives back the answer's status."""

    def __init__(self, *, password="secret", tls=None):
        self.password = password
        self.tls = tls
        self.binds = []
        self.bind_statuses = []
        """What to refuse the next binds with; then they are taken if the password is right."""
        self.before_bind_response = b""
        self.submitted = []
        self.submitted_at = []
        self.statuses = []
        """What to answer the next submits with; then ESME_ROK."""
        self.answer_submits = True
        self.answer = None
        """In place of the two above: called with each submit, it answers as it likes (`respond`, `write`)."""
        self.message_id = str
        """The message_id of the nth submit."""
        self.before_unbind_response = None
        """Called when an unbind came, before it is answered."""
        self.deaf = False
        """Take nothing in and answer nothing, with the connection open."""
        self.heard = []
        """Every PDU that came, of all connections."""
        self.connections = []
        self.engine = None
        """Whom it serves, if a test looks into that one, too."""
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
        await self.tell()
        try:
            await connection.run()
        except ConnectionError:
            connection.end()
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
        """The newest bind that takes messages: an older one may be of an engine that hangs."""
        return next(c for c in reversed(self.connections) if c.bound in ("BIND_TRANSCEIVER", "BIND_RECEIVER"))

    async def bound(self, count=1):
        await self.until(lambda: sum(bool(c.bound) for c in self.connections) == count)

    async def bound_again(self, binds):
        """Wait for the bind after the first `binds`."""
        await self.until(lambda: len(self.binds) > binds and any(c.bound for c in self.connections))

    def write(self, data):
        """Whatever bytes, to the bound peer."""
        self.receiver.writer.write(data)

    async def deliver(self, text, source="84327000686", *, wait=True, **fields):
        """Deliver a text; returns the command_status of the answer, or a future of it."""
        answer = self.receiver.request(delivery(text, source, **fields))
        return await asyncio.wait_for(answer, 10) if wait else answer

    def respond(self, submit, status=0, message_id=""):
        """Answer a submit, now or later, on the connection that it came by if that still stands."""
        for connection in self.connections:
            if submit in connection.submitted:
                connection.session.respond(submit, status, message_id=message_id, now=time.monotonic())
                connection.flush()

    def texts(self):
        return [pdu.short_message.decode("ascii") for pdu in self.submitted]

    async def replies(self, count, seconds=10.0):
        await self.until(lambda: len(self.submitted) >= count, seconds)
        return self.texts()

    def statuses_heard(self, command):
        """The command_status of each PDU of this command that came, in order."""
        return [pdu.status for pdu in self.heard if pdu.command_id == command]


def delivery(text, source="84327000686", **fields):
    """A deliver_sm."""
    values = {"source_ton": 1, "source_npi": 1, "destination": "8079", "short_message": text} | fields
    if isinstance(values["short_message"], str):
        values["short_message"] = values["short_message"].encode("ascii")
    return ShortMessage(source=source, **{"command_id": Command.DELIVER_SM} | values)


class _Connection:
    def __init__(self, carrier, reader, writer):
        self.carrier, self.reader, self.writer = carrier, reader, writer
        self.session = Session(Role.SMSC, window=100, now=time.monotonic())
        self.bound = None
        self.submitted = []
        self._decoder = Decoder()

    def request(self, pdu):
        answer = asyncio.get_running_loop().create_future()
        self.session.request(pdu, time.monotonic(), answer)
        self.flush()
        return answer

    def flush(self):
        self.writer.write(self.session.data_to_send())

    async def run(self):
        while data := await self.reader.read(65536):
            if self.carrier.deaf:
                continue
            pdus = list(self._decoder.feed(data))
            self.carrier.heard += pdus
            if self.carrier.before_unbind_response and any(p.command_id == Command.UNBIND for p in pdus):
                self.carrier.before_unbind_response()
            for event in self.session.receive(data, time.monotonic()):
                self.handle(event)
            self.flush()
            await self.carrier.tell()
        self.end()

    def end(self):
        for event in self.session.closed_by_peer(time.monotonic()):
            self.handle(event)

    def handle(self, event):
        now = time.monotonic()
        match event:
            case BindRequested(pdu):
                self.carrier.binds.append(pdu)
                status = self.carrier.bind_statuses.pop(0) if self.carrier.bind_statuses else 0
                if status == 0 and pdu.password != self.carrier.password:
                    status = Status.ESME_RINVPASWD
                if status:
                    self.session.refuse_bind(pdu, status, now)
                    return
                self.writer.write(self.carrier.before_bind_response)
                self.session.accept_bind(pdu, "smsc", now)
                self.bound = pdu.kind.name if pdu.kind.name.startswith("BIND") else f"BIND_{pdu.kind.name}"
            case Request(pdu):
                self.submitted.append(pdu)
                self.carrier.submitted.append(pdu)
                self.carrier.submitted_at.append(now)
                if self.carrier.answer is not None:
                    self.carrier.answer(pdu)
                elif self.carrier.answer_submits:
                    status = self.carrier.statuses.pop(0) if self.carrier.statuses else 0
                    message_id = self.carrier.message_id(len(self.carrier.submitted))
                    self.session.respond(pdu, status, message_id=message_id, now=now)
            case Response():
                event.context.set_result(event.pdu.status)
            case RequestLost():
                if not event.context.done():
                    event.context.cancel()
            case Closed():
                self.flush()
                self.writer.close()
