"""A hostile carrier: an SMSC with phones that delivers again what was not acknowledged, and answers as it likes."""

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from caplai.smpp import text
from caplai.smpp.pdu import Command, ShortMessage, ShortMessageResp, Simple, Status, Tag, encode
from caplai.smpp.session import (
    BindRequested,
    Closed,
    Request,
    RequestLost,
    Response,
    Role,
    Session,
    Timers,
)
from tests.simulation.network import End

PATIENCE = (5.0, 12.0)
"""Seconds that it waits for an answer to a delivery: one or the other."""
_BLUR = 0.3
"""Seconds by which the two sides of an unstalled connection may differ in when something was sent."""
_SAR = (Tag.SAR_MSG_REF_NUM, Tag.SAR_TOTAL_SEGMENTS, Tag.SAR_SEGMENT_SEQNUM)
FOR_GOOD = Status.ESME_RINVDSTADR
_TEMPORARY = (
    Status.ESME_RSYSERR,
    Status.ESME_RTHROTTLED,
    Status.ESME_RMSGQFUL,
    Status.ESME_RX_T_APPN,
    0x00000400,  # a carrier's own
)


@dataclass
class Text:
    """What a person texts, in one part or two; `again_after` is the same text sent before."""

    number: int
    source: str
    words: str
    pieces: list[str]
    again_after: "Text | None" = None
    waiting: set[int] = field(default_factory=set)
    """The parts that were not acknowledged yet."""
    offered_at: float = 0.0
    """When a part of it was last delivered, or delivered again."""
    doubtful: bool = False
    """It was delivered more than once, or refused: it need not be told from the one before."""
    connections: set["Connection"] = field(default_factory=set)
    """By which its parts were acknowledged."""
    surely_read: bool = False
    """The carrier has answered what the engine asked after its last acknowledgement of this."""

    @property
    def acknowledged(self) -> bool:
        return not self.waiting


@dataclass
class Submit:
    """What the engine sent to a phone, and what the carrier made of it."""

    at: float
    engine: object
    destination: str
    body: bytes
    status: int | None = None
    """What it was, or will be, answered with; None: never answered."""

    @property
    def taken(self) -> bool:
        """Whether the phone gets it: also when the answer is kept back."""
        return not self.status


class Connection(asyncio.Protocol):
    """The carrier's side of one connection."""

    def __init__(self, carrier: "Carrier") -> None:
        self.carrier = carrier
        self.loop = asyncio.get_running_loop()
        timers = Timers(enquire_link=carrier.enquire, response=carrier.patience, bind=5.0)
        self.session = Session(Role.SMSC, window=carrier.window, timers=timers, now=self.loop.time())
        self.bound = False
        self.transport: End
        self.timer: asyncio.TimerHandle | None = None
        self.open: dict[int, float] = {}
        """Submits that are not answered yet: sequence → when they came."""
        self.read: list[tuple[Text, float]] = []
        """What was acknowledged on it, and when."""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.carrier.connections.append(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.handle(self.session.receive(data, self.loop.time()))

    def connection_lost(self, exc: Exception | None) -> None:
        self.handle(self.session.closed_by_peer(self.loop.time()))
        if self.timer:
            self.timer.cancel()
        if self in self.carrier.connections:
            self.carrier.connections.remove(self)

    def tick(self) -> None:
        self.timer = None
        self.handle(self.session.tick(self.loop.time()))

    def flush(self) -> None:
        if data := self.session.data_to_send():
            self.transport.write(data)
        deadline = self.session.next_deadline()
        if deadline is not None and (self.timer is None or self.timer.when() > deadline):
            if self.timer:
                self.timer.cancel()
            self.timer = self.loop.call_at(deadline, self.tick)

    def handle(self, events) -> None:
        for event in events:
            match event:
                case BindRequested(pdu):
                    self.loop.call_later(self.carrier.delay(), self.answer_bind, pdu)
                case Request(pdu):
                    self.carrier.submitted(self, pdu)
                case Response():
                    self.carrier.answered(self, *event.context, event.pdu.status, event.accepted)
                case RequestLost():
                    self.carrier.answered(self, *event.context, None, False)
                case Closed():
                    self.transport.write(self.session.data_to_send())
                    self.transport.close()
        if not self.session.closed:
            self.flush()

    def answer_bind(self, pdu) -> None:
        now = self.loop.time()
        if self.session.closed:
            return
        if self.carrier.draw.random() < self.carrier.refuses_binds:
            self.session.refuse_bind(pdu, Status.ESME_RBINDFAIL, now)
        else:
            self.session.accept_bind(pdu, "smsc", now)
            self.bound = True
        self.flush()


class Carrier:
    """The SMSC. `engine_of(connection)` says who is at the other end; `broken` collects what it sees go wrong."""

    def __init__(self, loop, draw: random.Random, engine_of: Callable[[Connection], object]) -> None:
        self.loop, self.draw, self.engine_of = loop, draw, engine_of
        self.connections: list[Connection] = []
        self.texts: list[Text] = []
        self.submits: list[Submit] = []
        self.trace: Callable[[str], None] = lambda line: None
        self.on_acknowledged: Callable[[Text, int], None] = lambda text, part: None
        self.on_submit: Callable[[Submit], None] = lambda submit: None
        self.on_overrun: Callable[[int], None] = lambda count: None
        self.window = draw.choice([1, 3, 20])
        self.patience = draw.choice(PATIENCE)
        self.enquire = draw.choice([2.0, 7.0])
        self.engines_window = 0
        self.engines_timeout = 0.0
        self.refuses_binds = 0.0
        self.refuses = 0.0
        """The share of submits that are answered with an error."""
        self.refuses_for_good = 0.0
        self.forgets = 0.0
        """The share of submits that are never answered."""
        self.odd = 0.0
        """The share of submits that something odd accompanies."""
        self.slow = 0.002
        """Seconds until an answer, at most: each at its own time, so they overtake each other."""

    def delay(self) -> float:
        return self.draw.random() * self.slow

    @property
    def bound(self) -> list[Connection]:
        return [c for c in self.connections if c.bound and not c.session.closed]

    # --- from phones ---

    def send(self, text_: Text) -> None:
        text_.waiting = set(range(len(text_.pieces)))
        self.texts.append(text_)
        for part in text_.waiting:
            self.loop.call_later(self.delay(), self.offer, text_, part)

    def offer(self, text_: Text, part: int) -> None:
        if part not in text_.waiting:
            return
        before = text_.again_after
        if before is not None and not before.surely_read:
            text_.doubtful = True  # for the engine it may be the one before, delivered again
        able = [c for c in self.bound if c.session.free]
        if (before is not None and not before.acknowledged) or not able:
            self.loop.call_later(0.1 + self.draw.random() * 0.5, self.offer, text_, part)
            return
        connection = self.draw.choice(able)
        pdu = ShortMessage(
            Command.DELIVER_SM, source=text_.source, source_ton=1, source_npi=1, destination="8079"
        )
        pdu.short_message = text_.pieces[part].encode()
        numbers = (text_.number, len(text_.pieces), part + 1)
        if len(text_.pieces) > 1 and text_.number % 2:
            pdu.esm_class = text.UDH_INDICATOR
            pdu.short_message = bytes([5, 0, 3, *numbers]) + pdu.short_message
        elif len(text_.pieces) > 1:
            sizes = (2, 1, 1)
            pdu.tlvs = [(t, n.to_bytes(s, "big")) for t, n, s in zip(_SAR, numbers, sizes, strict=True)]
        text_.offered_at = self.loop.time()
        connection.session.request(pdu, self.loop.time(), (text_, part))
        self.trace(f"carrier delivers text {text_.number}.{part}")
        connection.flush()

    def answered(self, connection: Connection, text_: Text, part: int, status: int | None, ok: bool) -> None:
        self.trace(f"carrier has for text {text_.number}.{part}: {status!r}")
        if ok:
            text_.waiting.discard(part)
            text_.connections.add(connection)
            connection.read.append((text_, self.loop.time()))
            self.on_acknowledged(text_, part)
        else:
            text_.doubtful = True
            self.loop.call_later(0.05 + self.draw.random() * 1.5, self.offer, text_, part)

    # --- to phones ---

    def submitted(self, connection: Connection, pdu: ShortMessage) -> None:
        now, draw = self.loop.time(), self.draw
        submit = Submit(now, self.engine_of(connection), pdu.destination, pdu.short_message, 0)
        if draw.random() < self.refuses:
            submit.status = draw.choice(_TEMPORARY)
        elif draw.random() < self.refuses_for_good:
            submit.status = FOR_GOOD
        elif draw.random() < self.forgets:
            submit.status = None
        self.submits.append(submit)
        self.on_submit(submit)
        self.trace(f"carrier got a submit to {pdu.destination}, answers {submit.status!r}")
        # The engine gives a request up after its time and has room again; a stalled network blurs when that was.
        since = now - self.engines_timeout + _BLUR
        connection.open = {s: at for s, at in connection.open.items() if at > since}
        connection.open[pdu.sequence] = now
        if len(connection.open) > self.engines_window and not connection.transport.wire.stalled_until:
            self.on_overrun(len(connection.open))
        if submit.status is not None:
            # Within one reading of its clock the engine does not know which of the two it wrote first.
            read = [text_ for text_, at in connection.read if text_.acknowledged and at < now]
            self.loop.call_later(self.delay(), self.answer, connection, pdu, submit.status, read)
        if draw.random() < self.odd:
            self.loop.call_later(self.delay(), self.be_odd, connection, pdu)

    def answer(self, connection: Connection, pdu: ShortMessage, status: int, read: list[Text]) -> None:
        if connection.session.closed:
            return
        came = connection.open.pop(pdu.sequence, -math.inf)
        in_time = self.loop.time() - came < self.engines_timeout - _BLUR
        if in_time and not connection.transport.wire.stalled_until:  # else the engine may have given it up
            for text_ in read:
                text_.surely_read = True
        connection.session.respond(pdu, status, message_id=str(pdu.sequence), now=self.loop.time())
        connection.flush()

    def be_odd(self, connection: Connection, pdu: ShortMessage) -> None:
        """What no good SMSC sends, and none of it may matter."""
        if connection.session.closed or connection.transport.is_closing():
            return
        sequence = pdu.sequence
        odd = self.draw.choice(
            [
                encode(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, sequence + 100_000, "strange")),
                encode(ShortMessageResp(Command.DELIVER_SM_RESP, 0, sequence)),
                encode(Simple(Command.ENQUIRE_LINK_RESP, 0, sequence + 200_000)),
                encode(Simple(Command.ENQUIRE_LINK, 0, sequence)),
                bytes.fromhex("00000010 00000103 00000000 70000007"),  # a data_sm without a body
                bytes.fromhex("00000012 00000777 00000000 70000008 abcd"),  # an unknown command
            ]
        )
        connection.transport.write(odd)
