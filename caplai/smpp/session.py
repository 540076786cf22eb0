"""One SMPP connection, seen from either side: what its bytes mean, what may be said, what is overdue.

No I/O and no clock: bytes and `now` (seconds on a monotonic clock) come in, events come out, and
`data_to_send()` holds what to write after every call. (§ numbers: "SMPP v3.4 Issue 1.2", 12-Oct-1999.)
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from caplai.smpp.pdu import (
    MAX_COMMAND_LENGTH,
    RESPONSE_BIT,
    BadBody,
    Bind,
    BindKind,
    BindResp,
    Command,
    Decoder,
    FramingError,
    Pdu,
    ShortMessage,
    ShortMessageResp,
    Simple,
    Status,
    Tag,
    Tlvs,
    Unknown,
    command_name,
    encode,
    find_tlv,
)

__all__ = [
    "Alive",
    "BindKind",
    "BindRefused",
    "BindRequested",
    "Bound",
    "Closed",
    "Event",
    "Ignored",
    "LocalProtocolError",
    "Request",
    "RequestLost",
    "Response",
    "Role",
    "Session",
    "State",
    "Timers",
]


class Role(Enum):
    """Which side of the connection we are."""

    ESME = auto()
    SMSC = auto()


class State(Enum):
    """§2.2, and two states between: a bind, or an unbind, is asked for and not yet answered."""

    OPEN = auto()
    BINDING = auto()
    BOUND_TX = auto()
    BOUND_RX = auto()
    BOUND_TRX = auto()
    UNBINDING = auto()
    CLOSED = auto()


# --- the law ----------------------------------------------------------------------------------------------

_BINDS: Final = frozenset({Command.BIND_TRANSMITTER, Command.BIND_RECEIVER, Command.BIND_TRANSCEIVER})
_BOUND: Final = frozenset({State.BOUND_TX, State.BOUND_RX, State.BOUND_TRX})
_LINK: Final = frozenset({Command.ENQUIRE_LINK, Command.UNBIND})
_NONE: Final[frozenset[Command]] = frozenset()
_FROM_ESME: Final = frozenset({Command.SUBMIT_SM, Command.DATA_SM})
_FROM_SMSC: Final = frozenset({Command.DELIVER_SM, Command.DATA_SM})

# Which requests each side may issue in which state: table 2-1 (§2.3), of the commands we know. Both sides
# read it: what is legal for the peer we accept, what is legal for us we send. UNBINDING is not in the
# specification: the side that asked for the unbind issues nothing more, and still accepts what was on its
# way from the other, because a message refused as a protocol error may be dropped for good by its sender.
LEGAL: Final[dict[State, dict[Role, frozenset[Command]]]] = {
    State.OPEN: {Role.ESME: _BINDS, Role.SMSC: frozenset({Command.OUTBIND})},
    State.BINDING: {Role.ESME: _NONE, Role.SMSC: _NONE},
    State.BOUND_TX: {Role.ESME: _LINK | _FROM_ESME, Role.SMSC: _LINK},
    State.BOUND_RX: {Role.ESME: _LINK, Role.SMSC: _LINK | _FROM_SMSC},
    State.BOUND_TRX: {Role.ESME: _LINK | _FROM_ESME, Role.SMSC: _LINK | _FROM_SMSC},
    State.UNBINDING: {Role.ESME: _LINK | _FROM_ESME, Role.SMSC: _LINK | _FROM_SMSC},
    State.CLOSED: {Role.ESME: _NONE, Role.SMSC: _NONE},
}

# Where a legal PDU leads, whichever side issued it; what is not here leaves the state as it is. A bind
# response with an error leads back to OPEN. From everywhere, the end of the connection leads to CLOSED.
NEXT: Final[dict[State, dict[Command, State]]] = {
    State.OPEN: dict.fromkeys(_BINDS, State.BINDING),
    State.BINDING: {
        Command.BIND_TRANSMITTER_RESP: State.BOUND_TX,
        Command.BIND_RECEIVER_RESP: State.BOUND_RX,
        Command.BIND_TRANSCEIVER_RESP: State.BOUND_TRX,
    },
    State.BOUND_TX: {Command.UNBIND: State.UNBINDING},
    State.BOUND_RX: {Command.UNBIND: State.UNBINDING},
    State.BOUND_TRX: {Command.UNBIND: State.UNBINDING},
    State.UNBINDING: {Command.UNBIND_RESP: State.CLOSED},
    State.CLOSED: {},
}

MAX_SEQUENCE: Final = 0x7FFFFFFF  # §5.1.4
MOST_EARLY: Final = 1000
"""Messages of the peer kept until our bind is answered; more are refused."""


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds (§7.2).

    enquire_link: nothing of ours was answered for this long, so we ask whether the peer is there;
    response: a request of ours unanswered this long is lost; bind: connected this long without a bind;
    message: the same as `response` for messages, None: no other.
    """

    enquire_link: float = 30.0
    response: float = 10.0
    bind: float = 10.0
    message: float | None = None


_DEFAULT_TIMERS: Final = Timers()


# --- events -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Bound:
    """ESME: the SMSC accepted our bind."""

    kind: BindKind
    peer_system_id: str
    interface_version: int | None = None
    """The peer's sc_interface_version, if it names one: 0x34 is SMPP 3.4."""


@dataclass(slots=True)
class BindRefused:
    """ESME: the SMSC refused our bind. The connection is OPEN and may try again until `Timers.bind`."""

    status: int


@dataclass(slots=True)
class BindRequested:
    """SMSC: answer with `accept_bind` or `refuse_bind`."""

    pdu: Bind


@dataclass(slots=True)
class Request:
    """A deliver_sm or submit_sm of the peer: answer with `respond`, now or later, in any order."""

    pdu: ShortMessage


@dataclass(slots=True)
class Response:
    """The peer answered `request`, with its response or with generic_nack. `sent_at`: when we asked."""

    context: object = field(repr=False)
    request: ShortMessage
    pdu: ShortMessageResp | Simple
    sent_at: float

    @property
    def accepted(self) -> bool:
        """The peer took the message. (A generic_nack takes nothing, even one with status 0.)"""
        return self.pdu.status == 0 and self.pdu.command_id != Command.GENERIC_NACK


@dataclass(slots=True)
class RequestLost:
    """No answer will come to `request`: the peer may have taken the message, or not."""

    context: object = field(repr=False)
    request: ShortMessage
    reason: str


@dataclass(slots=True)
class Alive:
    """The peer answered our enquire_link that we sent at `sent_at`."""

    sent_at: float


@dataclass(slots=True)
class Ignored:
    """A PDU that was dropped, or answered with an error, by rule. For logs and counters."""

    reason: str
    command_id: int


@dataclass(slots=True)
class Closed:
    """The last event: write what `data_to_send()` still holds and close the connection."""

    reason: str


Event = Bound | BindRefused | BindRequested | Request | Response | RequestLost | Alive | Ignored | Closed


class LocalProtocolError(Exception):
    """We, not the peer, broke a rule of the session. A bug of the caller's."""


# --- the session ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pending:
    """A message of ours that waits for its answer."""

    answer: int
    sent_at: float
    context: object
    request: ShortMessage


class Session:
    """One connection, from its opening to `Closed`.

    window: how many messages of ours may be unanswered at once. max_command_length: octets.
    `now` must never go back from one call to the next.

    `confirmed_at` is when we sent the latest of our requests that the peer has answered, None before that.
    TCP keeps order, so whatever we wrote before that moment, responses of ours included, has arrived: a
    response given at `t` is known to have arrived once `t < confirmed_at`. (Not at equality: within one
    reading of the clock the order of writing is not known.)
    """

    def __init__(
        self,
        role: Role,
        *,
        window: int = 10,
        timers: Timers = _DEFAULT_TIMERS,
        max_command_length: int = MAX_COMMAND_LENGTH,
        now: float,
    ) -> None:
        self.role = role
        self.window = window
        self.timers = timers
        self._patience = timers.response if timers.message is None else timers.message
        self.confirmed_at: float | None = None
        self._decoder = Decoder(max_command_length)
        self._out: list[bytes] = []
        self._sequence = 0
        # Messages in the order of sending, so that the first is the first to be lost. (A plain dict takes
        # ever longer to find its first item when items are taken from the front.)
        self._messages: OrderedDict[int, _Pending] = OrderedDict()
        # An SMSC of several threads may deliver before its bind response is out: kept until it is.
        self._early: list[ShortMessage] = []
        # Our bind, unbind or enquire_link: sequence -> (command_id of its answer, when it was sent).
        self._link_requests: dict[int, tuple[int, float]] = {}
        # One timer for the link itself; what it means depends on the state, see `tick`.
        self._deadline = now + timers.bind
        self._enquiring = False
        self._enter(State.OPEN)

    # --- what the caller asks of the session ---

    @property
    def closed(self) -> bool:
        """Whether `Closed` has been reported."""
        return self.state is State.CLOSED

    @property
    def bound(self) -> bool:
        """Whether messages may be asked for, one way or the other: not while a bind or unbind is under way."""
        return self._bound

    @property
    def pending(self) -> int:
        """Messages of ours that are not answered yet."""
        return len(self._messages)

    @property
    def free(self) -> int:
        """How many `request` calls are allowed now; 0 when the state allows none."""
        message = Command.SUBMIT_SM if self.role is Role.ESME else Command.DELIVER_SM
        return max(0, self.window - len(self._messages)) if message in self._we_may else 0

    def data_to_send(self) -> bytes:
        """The bytes to write now; taken once."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def next_deadline(self) -> float | None:
        """When to call `tick`, unless something else happens first. None once closed."""
        if self.closed:
            return None
        if self._messages:
            return min(self._deadline, self._lost_at(next(iter(self._messages.values()))))
        return self._deadline

    def bind(
        self,
        kind: BindKind,
        *,
        system_id: str,
        password: str,
        system_type: str = "",
        interface_version: int = 0x34,
        addr_ton: int = 0,
        addr_npi: int = 0,
        address_range: str = "",
        now: float,
    ) -> None:
        """Ask the SMSC to bind us. `Bound` or `BindRefused` answers, or `Closed` after `Timers.bind`.

        Raises LocalProtocolError unless we are an ESME in OPEN, EncodeError for a string not Latin-1.
        """
        command = Command(kind.value)
        self._must_be_legal(command)
        pdu = Bind(
            command,
            system_id=system_id,
            password=password,
            system_type=system_type,
            interface_version=interface_version,
            addr_ton=addr_ton,
            addr_npi=addr_npi,
            address_range=address_range,
        )
        self._ask(pdu, now)
        self._deadline = now + self.timers.bind
        self._enter(NEXT[State.OPEN][command])

    def request(self, pdu: ShortMessage, now: float, context: object = None) -> int:
        """Send a submit_sm (ESME) or deliver_sm (SMSC) and return its sequence number, also set in `pdu`.

        `context` comes back in exactly one `Response` or `RequestLost`. Raises LocalProtocolError when the
        state does not allow it or the window is full (see `free`), EncodeError when it cannot be written;
        in both cases nothing was sent.
        """
        self._must_be_legal(pdu.command_id)
        if len(self._messages) >= self.window:
            raise LocalProtocolError(f"the window of {self.window} is full")
        sequence = pdu.sequence = self._next_sequence()
        self._out.append(encode(pdu))
        self._messages[sequence] = _Pending(pdu.command_id | RESPONSE_BIT, now, context, pdu)
        return sequence

    def respond(
        self, request: Request | ShortMessage, status: int = 0, *, message_id: str = "", now: float
    ) -> bool:
        """Answer a `Request` (or its pdu) with a command_status and, for submit_sm, a message_id.

        False when the session has ended meanwhile, so that no answer could be written.
        """
        pdu = request.pdu if isinstance(request, Request) else request
        if not self._bound and self.state is not State.UNBINDING:
            if self.closed:
                return False
            raise LocalProtocolError(f"there is nothing to respond to in {self.state.name}")
        answer = ShortMessageResp(pdu.command_id | RESPONSE_BIT, status, pdu.sequence, message_id)
        self._out.append(encode(answer))
        return True

    def accept_bind(self, pdu: Bind, system_id: str, now: float) -> bool:
        """SMSC: let the peer of `BindRequested` in. False when the session has ended meanwhile."""
        if not self._may_answer_bind():
            return False
        answer = Command(pdu.command_id | RESPONSE_BIT)
        # §4.1: a peer older than 3.4 knows no optional parameters.
        tlvs: Tlvs = [(Tag.SC_INTERFACE_VERSION, b"\x34")] if pdu.interface_version >= 0x34 else []
        self._out.append(encode(BindResp(answer, 0, pdu.sequence, system_id, tlvs)))
        self._enter(NEXT[State.BINDING][answer])
        self._deadline = now + self.timers.enquire_link
        return True

    def refuse_bind(self, pdu: Bind, status: int, now: float) -> bool:
        """SMSC: turn the peer of `BindRequested` away. It may try again until `Timers.bind`.

        False when the session has ended meanwhile.
        """
        if not self._may_answer_bind():
            return False
        self._out.append(encode(BindResp(pdu.command_id | RESPONSE_BIT, status, pdu.sequence)))
        self._enter(State.OPEN)
        return True

    def enquire(self, now: float) -> None:
        """Ask at once whether the peer is there; `Alive` answers. Raises LocalProtocolError when not bound."""
        self._must_be_legal(Command.ENQUIRE_LINK)
        self._ask(Simple(Command.ENQUIRE_LINK), now)
        self._enquiring = True
        self._deadline = now + self.timers.response

    def unbind(self, now: float) -> None:
        """Ask to end the session. `Closed` follows, after `Timers.response` at the latest.

        Answers to what is still pending, and `respond`, go on working until then.
        Asking twice is asking once. Raises LocalProtocolError when we are not bound.
        """
        if self.state is State.UNBINDING:
            return
        self._must_be_legal(Command.UNBIND)
        self._ask(Simple(Command.UNBIND), now)
        self._enter(NEXT[self.state][Command.UNBIND])
        self._deadline = now + self.timers.response

    # --- what happens to the session ---

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Bytes came from the peer. Never raises, whatever they are."""
        events: list[Event] = []
        if self.closed:
            return events
        for pdu in self._decoder.feed(data):
            if type(pdu) is ShortMessage:
                self._message_requested(pdu, events)
            elif type(pdu) is ShortMessageResp:
                self._message_answered(pdu, now, events)
            else:
                self._receive_other(pdu, now, events)
                if self.closed:
                    break
        return events

    def closed_by_peer(self, now: float, reason: str = "peer gone") -> list[Event]:
        """The connection is gone. What was pending comes back as `RequestLost`, then `Closed`."""
        events: list[Event] = []
        if not self.closed:
            self._close(reason, events)
        return events

    def tick(self, now: float) -> list[Event]:
        """Do what is due at `now`: report lost requests, ask whether the peer is there, or give it up."""
        events: list[Event] = []
        if self.closed:
            return events
        while self._messages:
            sequence, oldest = next(iter(self._messages.items()))
            if self._lost_at(oldest) > now:
                break
            del self._messages[sequence]
            events.append(RequestLost(oldest.context, oldest.request, "no response"))
        if now >= self._deadline:
            if self.state is State.UNBINDING:
                self._close("unbind unanswered", events)
            elif not self._bound:
                self._close("bind timeout", events)
            elif self._enquiring:
                self._close("silent peer", events)
            else:
                self._ask(Simple(Command.ENQUIRE_LINK), now)
                self._enquiring = True
                self._deadline = now + self.timers.response
        return events

    # --- inside ---

    def _enter(self, state: State) -> None:
        self.state = state
        self._bound = state in _BOUND
        self._we_may = LEGAL[state][self.role] if state is not State.UNBINDING else _NONE
        self._peer_may = LEGAL[state][Role.SMSC if self.role is Role.ESME else Role.ESME]

    def _close(self, reason: str, events: list[Event]) -> None:
        self._enter(State.CLOSED)
        events.extend(RequestLost(lost.context, lost.request, reason) for lost in self._messages.values())
        self._messages.clear()
        self._link_requests.clear()
        events.append(Closed(reason))

    def _lost_at(self, pending: _Pending) -> float:
        return pending.sent_at + self._patience

    def _may_answer_bind(self) -> bool:
        if self.closed:
            return False
        if self.role is not Role.SMSC or self.state is not State.BINDING:
            raise LocalProtocolError(f"there is no bind to answer in {self.state.name}")
        return True

    def _must_be_legal(self, command_id: int) -> None:
        if command_id not in self._we_may:
            raise LocalProtocolError(f"{command_name(command_id)} is not legal in {self.state.name}")

    def _next_sequence(self) -> int:
        sequence = self._sequence % MAX_SEQUENCE + 1
        while sequence in self._messages or sequence in self._link_requests:
            sequence = sequence % MAX_SEQUENCE + 1
        self._sequence = sequence
        return sequence

    def _ask(self, pdu: Bind | Simple, now: float) -> None:
        sequence = pdu.sequence = self._next_sequence()
        self._out.append(encode(pdu))
        self._link_requests[sequence] = (pdu.command_id | RESPONSE_BIT, now)

    def _answer(self, command_id: int, sequence: int, status: int) -> None:
        answer = command_id | RESPONSE_BIT
        message = command_id in (Command.SUBMIT_SM, Command.DELIVER_SM, Command.DATA_SM)
        self._out.append(encode((ShortMessageResp if message else Simple)(answer, status, sequence)))

    def _refuse(self, command_id: int, sequence: int, events: list[Event]) -> None:
        """Answer a request that the table forbids."""
        if command_id != Command.OUTBIND:  # which has no response
            again = self._bound and self.role is Role.SMSC and command_id in _BINDS
            status = Status.ESME_RALYBND if again else Status.ESME_RINVBNDSTS
            self._answer(command_id, sequence, status)
        events.append(Ignored(f"not legal in {self.state.name}", command_id))

    def _confirm(self, sent_at: float, now: float) -> None:
        """The peer answered a request of ours: it lives, and has read what we wrote before `sent_at`."""
        if self.confirmed_at is None or sent_at > self.confirmed_at:
            self.confirmed_at = sent_at
        if self._bound and not self._enquiring:
            self._deadline = now + self.timers.enquire_link

    def _message_requested(self, pdu: ShortMessage, events: list[Event]) -> None:
        if pdu.command_id in self._peer_may:
            events.append(Request(pdu))
        elif (
            self.state is State.BINDING
            and self.role is Role.ESME
            and pdu.command_id in _FROM_SMSC
            and len(self._early) < MOST_EARLY
        ):
            self._early.append(pdu)
        else:
            self._refuse(pdu.command_id, pdu.sequence, events)

    def _message_answered(self, pdu: ShortMessageResp | Simple, now: float, events: list[Event]) -> None:
        pending = self._messages.get(pdu.sequence)
        if pending is None or (pdu.command_id != pending.answer and pdu.command_id != Command.GENERIC_NACK):
            events.append(Ignored("answers no request of ours", pdu.command_id))
            return
        del self._messages[pdu.sequence]
        self._confirm(pending.sent_at, now)
        events.append(Response(pending.context, pending.request, pdu, pending.sent_at))

    def _receive_other(self, pdu: Pdu | BadBody | FramingError, now: float, events: list[Event]) -> None:
        match pdu:
            case FramingError():
                # §4.3: sequence_number 0, because the header that broke the rule cannot be trusted.
                self._out.append(encode(Simple(Command.GENERIC_NACK, Status.ESME_RINVCMDLEN)))
                self._close(f"framing error: {pdu.reason}", events)
            case BadBody():
                if pdu.command_id not in self._peer_may:
                    self._refuse(pdu.command_id, pdu.sequence, events)
                    return
                if pdu.command_id != Command.OUTBIND:
                    self._answer(pdu.command_id, pdu.sequence, pdu.error_status)
                events.append(Ignored("unreadable body", pdu.command_id))
            case Unknown():
                if not pdu.command_id & RESPONSE_BIT:
                    nack = Simple(Command.GENERIC_NACK, Status.ESME_RINVCMDID, pdu.sequence)
                    self._out.append(encode(nack))
                events.append(Ignored("unknown command", pdu.command_id))
            case Simple() | BindResp() if pdu.command_id & RESPONSE_BIT:
                self._receive_answer(pdu, now, events)
            case Simple() | Bind():
                self._receive_link_request(pdu, events)

    def _receive_link_request(self, pdu: Simple | Bind, events: list[Event]) -> None:
        if pdu.command_id not in self._peer_may:
            self._refuse(pdu.command_id, pdu.sequence, events)
        elif pdu.command_id == Command.ENQUIRE_LINK:
            self._answer(pdu.command_id, pdu.sequence, Status.ESME_ROK)
        elif pdu.command_id == Command.UNBIND:
            self._answer(pdu.command_id, pdu.sequence, Status.ESME_ROK)
            self._close("unbound by the peer", events)
        elif isinstance(pdu, Bind) and pdu.command_id in _BINDS:
            self._enter(NEXT[State.OPEN][Command(pdu.command_id)])
            events.append(BindRequested(pdu))
        else:
            events.append(Ignored("an outbind asks for a bind that we do at our own time", pdu.command_id))

    def _receive_answer(self, pdu: Simple | BindResp, now: float, events: list[Event]) -> None:
        """A bind_resp, unbind_resp, enquire_link_resp, or a generic_nack to anything of ours."""
        answer, sent_at = self._link_requests.get(pdu.sequence, (None, 0.0))
        if answer is None and isinstance(pdu, Simple):
            self._message_answered(pdu, now, events)
            return
        if answer is None or pdu.command_id not in (answer, Command.GENERIC_NACK):
            events.append(Ignored("answers no request of ours", pdu.command_id))
            return
        del self._link_requests[pdu.sequence]
        if answer == Command.ENQUIRE_LINK_RESP:
            self._enquiring = False
            events.append(Alive(sent_at))
        elif answer == Command.UNBIND_RESP:
            self._close("unbound", events)
        elif isinstance(pdu, BindResp) and pdu.status == 0:
            self._enter(NEXT[State.BINDING][Command(answer)])
            version = int.from_bytes(find_tlv(pdu.tlvs, Tag.SC_INTERFACE_VERSION) or b"", "big") or None
            events.append(Bound(BindKind(answer ^ RESPONSE_BIT), pdu.system_id, version))
            early, self._early = self._early, []
            for message in early:
                self._message_requested(message, events)
        else:
            self._early.clear()
            self._enter(State.OPEN)
            events.append(BindRefused(pdu.status))
        self._confirm(sent_at, now)
