"""One connection of an ESME's: bytes between the socket and its session, one timer, and what may happen to it."""

import asyncio
import struct
from enum import Enum
from typing import TYPE_CHECKING, Final

from caplai.simulator.scenarios import Setting
from caplai.smpp.pdu import Bind, Command, ShortMessage, Status, encode
from caplai.smpp.session import (
    MAX_SEQUENCE,
    BindRequested,
    Event,
    Request,
    RequestLost,
    Response,
    Role,
    Session,
    State,
    Timers,
)

if TYPE_CHECKING:
    from caplai.simulator.smsc import Smsc

BLOWS: Final = ("bad-length", "unknown-command", "half-pdu", "cut-deliveries")
"""The scenarios that `Link.deliver` can do to a delivery, each at most once to the same."""

_BOUND: Final = frozenset({State.BOUND_TX, State.BOUND_RX, State.BOUND_TRX})
_HEADER: Final = struct.Struct(">4I")
_UNKNOWN_COMMAND = 0x00BADBAD


class Life(Enum):
    """Whether a connection carries anything."""

    OPEN = "open"
    FROZEN = "frozen"
    """Half-open: nothing is read or written, yet it stands."""
    ENDING = "ending"


class Link(asyncio.Protocol):
    """One connection to `smsc`, which hears what it reports."""

    def __init__(self, smsc: "Smsc", loop: asyncio.AbstractEventLoop) -> None:
        self._smsc = smsc
        self._loop = loop
        rules = smsc.rules
        self.session = Session(
            Role.SMSC,
            window=rules.window,
            timers=Timers(enquire_link=rules.enquire_link, response=rules.response),
            now=loop.time(),
        )
        self.gone: asyncio.Future[None] = loop.create_future()
        self._life = Life.OPEN
        self._timer: asyncio.TimerHandle | None = None

    @property
    def free(self) -> int:
        """How many deliveries it takes now."""
        return self.session.free if self._life is Life.OPEN else 0

    @property
    def frozen(self) -> bool:
        return self._life is Life.FROZEN

    # What the socket says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._smsc.scenarios.find("outbind"):
            transport.write(encode(Bind(Command.OUTBIND, system_id="simulator", sequence=1)))
        self._smsc.joined(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        now = self._loop.time()
        self._handle(self.session.receive(data, now), now)

    def connection_lost(self, exc: Exception | None) -> None:
        now = self._loop.time()
        self._life = Life.ENDING
        self._smsc.left(self)
        self._handle(self.session.closed_by_peer(now), now)
        if self._timer is not None:
            self._timer.cancel()
        self.gone.set_result(None)

    def pause_writing(self) -> None:
        # A peer that does not read is not read from either: its requests would only pile up answers.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._life is Life.OPEN:
            self._transport.resume_reading()

    # What the message centre wants of it

    def flush(self) -> None:
        """Write what the session has to say, and see to it that its next deadline is not missed."""
        if self._life is Life.FROZEN:
            return
        data = self.session.data_to_send()
        if data and self._life is Life.OPEN:
            if not self._smsc.scenarios.calm() and self._smsc.scenarios.find("silent-link"):
                data = _without(Command.ENQUIRE_LINK_RESP, data)
            self._transport.write(data)
        due = self.session.next_deadline()
        if due is not None and (self._timer is None or due < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._tick)

    def deliver(self, pdu: ShortMessage, now: float, context: object, blow: Setting | None) -> None:
        """Send a deliver_sm; `blow` is what happens to it, one of BLOWS."""
        if blow is None:
            self.session.request(pdu, now, context)
            return
        self.flush()
        name = blow.scenario.name
        if name == "bad-length":
            self._transport.write(_HEADER.pack(int(blow.number), Command.DELIVER_SM, 0, MAX_SEQUENCE))
        elif name == "unknown-command":
            self._transport.write(_HEADER.pack(16 + 4, _UNKNOWN_COMMAND, 0, MAX_SEQUENCE) + b"what")
        self.session.request(pdu, now, context)
        octets = self.session.data_to_send()
        if name == "half-pdu":
            octets = octets[: len(octets) // 2]
        self._transport.write(octets)
        if name in ("half-pdu", "cut-deliveries"):
            self.break_off()

    def freeze(self) -> None:
        """Half-open from now on: it stands, and nothing more is read or written."""
        if self._life is Life.OPEN:
            self._life = Life.FROZEN
            self._transport.pause_reading()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def say_goodbye(self) -> None:
        """Unbind, or hang up on who never bound."""
        if self._life is Life.FROZEN:
            self.hang_up()
        elif self.session.state in _BOUND:
            self.session.unbind(self._loop.time())
            self.flush()
        else:
            self._transport.close()

    def break_off(self) -> None:
        """End the connection here: what was answered gets there, what comes after this is not heard any more."""
        self.flush()
        self._life = Life.ENDING
        self._transport.close()

    def hang_up(self) -> None:
        """End the connection now, whatever was still to be written."""
        self._life = Life.ENDING
        self._transport.abort()

    # What the session says

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._handle(self.session.tick(now), now)

    def _handle(self, events: list[Event], now: float) -> None:
        smsc = self._smsc
        lost = []
        for event in events:
            match event:
                case RequestLost():
                    lost.append(event)
                case Response() if self._life is Life.ENDING:
                    lost.append(RequestLost(event.context, event.request, "not heard"))
                case _ if self._life is Life.ENDING:
                    pass
                case Response():
                    smsc.answered(self, event)
                case Request():
                    smsc.submitted(self, event, now)
                case BindRequested():
                    status = smsc.may_bind(event.pdu)
                    if status == Status.ESME_ROK:
                        self.session.accept_bind(event.pdu, "simulator", now)
                    else:
                        self.session.refuse_bind(event.pdu, status, now)
        if lost:
            smsc.lost(lost, with_link=self.session.closed or self._life is Life.ENDING)
        self.flush()
        if self.session.closed:
            self._transport.close()
        smsc.changed()


def _without(command_id: int, data: bytes) -> bytes:
    """Whole PDUs, but for those of this command."""
    kept = []
    at = 0
    while at < len(data):
        length, command, _, _ = _HEADER.unpack_from(data, at)
        if command != command_id:
            kept.append(data[at : at + length])
        at += length
    return b"".join(kept)
