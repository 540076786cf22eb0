"""A carrier's message centre: phones on one side, ESMEs bound over SMPP 3.4 on the other.

It keeps what a phone sent until an ESME took it, refused it for good, or it expired, as a real one does.
All in one event loop, without a task or a timer for each message. (§ numbers: "SMPP v3.4 Issue 1.2".)
"""

import asyncio
import heapq
import itertools
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from caplai.simulator.phones import Message, Phones, State, read_number
from caplai.smpp.pdu import Bind, Command, ShortMessage, Status, Tag, status_name
from caplai.smpp.session import (
    BindRequested,
    Event,
    Request,
    RequestLost,
    Response,
    Role,
    Session,
    Timers,
)
from caplai.smpp.session import State as SessionState
from caplai.smpp.text import (
    DEFAULT_CODING,
    GSM_SINGLE,
    UDH_INDICATOR,
    assemble,
    decode,
    encode,
    is_gsm,
    parse_udh,
    split,
)

TEMPORARY: Final = frozenset(
    {Status.ESME_RSYSERR, Status.ESME_RMSGQFUL, Status.ESME_RTHROTTLED, Status.ESME_RX_T_APPN}
)
"""Answers to a deliver_sm after which the same message is tried again (§5.1.3); any other error is final."""

_BOUND: Final = frozenset({SessionState.BOUND_TX, SessionState.BOUND_RX, SessionState.BOUND_TRX})
_TON_UNKNOWN, _TON_INTERNATIONAL, _NPI_E164 = 0, 1, 1  # §5.2.5, §5.2.6
_UCS2_SINGLE_OCTETS = 140
_RECEIPT = 0x04  # esm_class of an SMSC delivery receipt (§5.2.12)
_RECEIPT_ALWAYS = 0x01  # registered_delivery bits 1-0: on success and on failure (§5.2.17)
_DELIVERED = b"\x02"  # message_state (§5.2.28)
_HANOI_OFFSET = 7 * 3600
_MOST_UNFINISHED = 1000  # long texts to phones of which a part is missing; the oldest is forgotten


@dataclass(frozen=True, slots=True)
class Rules:
    """How this carrier behaves; times in seconds.

    A deliver_sm unanswered for `response` counts as not arrived and is sent again up to `retries` times.
    After a temporary error it waits `pause`, then twice as long each time up to `longest_pause`. Nothing is
    kept longer than `validity`. `message_id` writes the number of a submit as this carrier writes its ids.
    """

    window: int = 256
    response: float = 5.0
    retries: int = 3
    pause: float = 1.0
    longest_pause: float = 30.0
    validity: float = 3600.0
    enquire_link: float = 30.0
    message_id: Callable[[int], str] = str


@dataclass(slots=True, eq=False)
class _Outgoing:
    """A text of a phone, and how many of its parts nobody has taken yet."""

    message: Message
    missing: int


@dataclass(slots=True, eq=False)
class _Parcel:
    """One deliver_sm to get across: a part of a phone's text, or a receipt (`of` is None)."""

    pdu: ShortMessage
    expires: float
    of: _Outgoing | None
    lost: int = 0
    pause: float = 0.0


class Smsc:
    """The message centre of `phones`; ESMEs bind with this `system_id` and `password`."""

    def __init__(
        self,
        phones: Phones,
        *,
        system_id: str = "caplai",
        password: str = "secret",  # noqa: S107  (the sample one, known to everybody)
        rules: Rules | None = None,
    ) -> None:
        self.rules = rules or Rules()
        self._phones = phones
        self._system_id = system_id
        self._password = password
        self._server: asyncio.Server | None = None
        self._links: list[_Link] = []
        self._turn = 0
        self._ready: deque[_Parcel] = deque()
        self._paused: list[tuple[float, int, _Parcel]] = []
        self._tickets = itertools.count()
        self._references = itertools.count(1)
        self._submits = itertools.count(1)
        self._unfinished: OrderedDict[tuple[str, str, int, int], dict[int, bytes]] = OrderedDict()
        self._pumping: asyncio.Handle | None = None
        self._alarm: asyncio.TimerHandle | None = None

    # Life

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (0 asks for any free one). Raises OSError if it cannot."""
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(lambda: _Link(self, self._loop), host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self, patience: float = 1.0) -> None:
        """Unbind whoever is bound, wait `patience` seconds for their goodbyes, then hang up."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        links = list(self._links)
        for link in links:
            link.say_goodbye()
        if links:
            await asyncio.wait([link.gone for link in links], timeout=patience)
            for link in links:
                link.hang_up()
            await asyncio.wait([link.gone for link in links])
        for timer in (self._pumping, self._alarm):
            if timer is not None:
                timer.cancel()

    def cut(self) -> None:
        """Drop every ESME's connection without a word, in the middle of whatever is under way."""
        for link in list(self._links):
            link.hang_up()

    def shuffle(self, draw: random.Random) -> None:
        """Deliver what is ready in another order than it was sent."""
        ready = list(self._ready)
        draw.shuffle(ready)
        self._ready = deque(ready)

    @property
    def bound(self) -> int:
        """How many binds can take what phones send."""
        takers = (SessionState.BOUND_RX, SessionState.BOUND_TRX)
        return sum(link.session.state in takers for link in self._links)

    @property
    def waiting(self) -> int:
        """How many parts and receipts wait for a bind, for a free place in its window, or for their pause."""
        return len(self._ready) + len(self._paused)

    # From phones

    def send_mo(self, phone: str, number: str, text: str) -> Message:
        """The phone (international digits) texts `number`. Returns at once; the message's state follows.

        Raises ValueError for a text of more than 255 parts.
        """
        coding, payloads = self._payloads(text)
        message = self._phones.compose(phone, number, text)
        outgoing = _Outgoing(message, len(payloads))
        expires = self._loop.time() + self.rules.validity
        for payload in payloads:
            # A subscriber is an E.164 number without plus: TON international, NPI ISDN. A short code means
            # something only inside its own network: TON unknown, the same numbering plan.
            pdu = ShortMessage(
                Command.DELIVER_SM.value,
                source_ton=_TON_INTERNATIONAL,
                source_npi=_NPI_E164,
                source=phone,
                destination_ton=_TON_UNKNOWN,
                destination_npi=_NPI_E164,
                destination=number,
                esm_class=UDH_INDICATOR if len(payloads) > 1 else 0,
                data_coding=coding,
                short_message=payload,
            )
            self._ready.append(_Parcel(pdu, expires, outgoing))
        self._wake()
        return message

    def _payloads(self, text: str) -> tuple[int, list[bytes]]:
        coding, octets = encode(text)
        if len(octets) <= (GSM_SINGLE if coding == DEFAULT_CODING else _UCS2_SINGLE_OCTETS):
            return coding, [octets]
        return coding, split(text, next(self._references))

    def _wake(self) -> None:
        """Send what is ready once everything that happens in this turn of the loop has happened."""
        if self._pumping is None:
            self._pumping = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = None
        now = self._loop.time()
        while self._paused and self._paused[0][0] <= now:
            self._ready.appendleft(heapq.heappop(self._paused)[2])
        ready = self._ready
        while ready:
            parcel = ready[0]
            if self._settled(parcel, now):
                ready.popleft()
                continue
            link = self._next_link()
            if link is None:
                break
            ready.popleft()
            link.session.request(parcel.pdu, now, parcel)
        for link in self._links:
            link.flush()
        # The oldest stand at the front, more or less: what came back was put there.
        due = min(
            self._paused[0][0] if self._paused else float("inf"),
            ready[0].expires if ready else float("inf"),
        )
        if due < float("inf") and (self._alarm is None or due < self._alarm.when()):
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._wake()

    def _next_link(self) -> "_Link | None":
        """The next bind in turn whose window has a free place."""
        links = self._links
        for _ in links:
            self._turn = (self._turn + 1) % len(links)
            if links[self._turn].session.free:
                return links[self._turn]
        return None

    def _settled(self, parcel: _Parcel, now: float) -> bool:
        """Whether nothing is left to do for it: it expired, or a part of the same text failed before."""
        if parcel.expires <= now:
            self._give_up(parcel, "expired")
            return True
        return parcel.of is not None and parcel.of.message.state is State.FAILED

    def _give_up(self, parcel: _Parcel, reason: str) -> None:
        if parcel.of is not None and parcel.of.message.state is State.SENDING:
            self._phones.failed(parcel.of.message, reason)

    # What a link reports

    def may_bind(self, pdu: Bind) -> Status:
        """The command_status that answers a bind."""
        if pdu.system_id != self._system_id:
            return Status.ESME_RINVSYSID
        return Status.ESME_ROK if pdu.password == self._password else Status.ESME_RINVPASWD

    def joined(self, link: "_Link") -> None:
        """A connection was made; it is not bound yet."""
        self._links.append(link)

    def left(self, link: "_Link") -> None:
        """A connection ended."""
        self._links.remove(link)

    def changed(self) -> None:
        """A bind was accepted, or windows have free places again."""
        if self._ready:
            self._wake()

    def answered(self, response: Response) -> None:
        """An ESME answered a deliver_sm: it took it, has trouble for now, or refused it."""
        parcel = response.context
        assert isinstance(parcel, _Parcel)
        if response.accepted:
            outgoing = parcel.of
            if outgoing is not None:
                outgoing.missing -= 1
                if not outgoing.missing and outgoing.message.state is State.SENDING:
                    self._phones.sent(outgoing.message)
        elif response.pdu.status in TEMPORARY:
            rules = self.rules
            parcel.pause = min(parcel.pause * 2, rules.longest_pause) if parcel.pause else rules.pause
            due = min(self._loop.time() + parcel.pause, parcel.expires)
            heapq.heappush(self._paused, (due, next(self._tickets), parcel))
            self._wake()  # sets the alarm
        else:
            self._give_up(parcel, status_name(response.pdu.status))

    def lost(self, events: list[RequestLost], *, with_link: bool) -> None:
        """Nobody will answer these (the oldest first).

        What was lost with its link goes to the next bind; what was left unanswered is tried only so often.
        """
        again = []
        for event in events:
            parcel = event.context
            assert isinstance(parcel, _Parcel)
            if not with_link:
                parcel.lost += 1
            if parcel.lost > self.rules.retries:
                self._give_up(parcel, "no response")
            else:
                again.append(parcel)
        self._ready.extendleft(reversed(again))
        self._wake()

    # To phones

    def submitted(self, link: "_Link", request: Request, now: float) -> None:
        """An ESME hands in a message: answer it, show it on its phone, send the receipt it asked for."""
        pdu = request.pdu
        phone = read_number(pdu.destination)
        status = _fate(phone)
        if phone is None or status != Status.ESME_ROK:
            link.session.respond(request, status, now=now)
            return
        message_id = self.rules.message_id(next(self._submits))
        if not link.session.respond(request, message_id=message_id, now=now):
            return  # the session ended in the same breath: unanswered is not accepted, it will come again
        payload, part = pdu.payload, None
        if pdu.esm_class & UDH_INDICATOR:
            part, payload = parse_udh(payload)
        if pdu.registered_delivery & 0x03 == _RECEIPT_ALWAYS:
            receipt = _receipt(pdu, message_id, decode(pdu.data_coding, payload).text)
            self._ready.append(_Parcel(receipt, now + self.rules.validity, None))
            self._wake()
        if part is not None and part.total > 1:
            key = (phone, pdu.source, part.reference, part.total)
            parts = self._unfinished.setdefault(key, {})
            parts[part.number] = payload
            if len(parts) < part.total:
                if len(self._unfinished) > _MOST_UNFINISHED:
                    self._unfinished.popitem(last=False)
                return
            del self._unfinished[key]
            payload = assemble(parts)
        self._phones.receive(phone, pdu.source, decode(pdu.data_coding, payload).text)


def _fate(phone: str | None) -> Status:
    """What becomes of a submit_sm to this phone: the status that answers it. Only ESME_ROK gets there."""
    return Status.ESME_RINVDSTADR if phone is None else Status.ESME_ROK


def _receipt(pdu: ShortMessage, message_id: str, text: str) -> ShortMessage:
    """The receipt of a delivered submit: text of Appendix B, TLVs of §4.6.1, the addresses turned round."""
    at = time.strftime("%y%m%d%H%M", time.gmtime(time.time() + _HANOI_OFFSET))
    excerpt = text[:20] if is_gsm(text[:20]) else ""
    coding, octets = encode(
        f"id:{message_id} sub:001 dlvrd:001 submit date:{at} done date:{at} "
        f"stat:DELIVRD err:000 text:{excerpt}"
    )
    return ShortMessage(
        Command.DELIVER_SM.value,
        source_ton=pdu.destination_ton,
        source_npi=pdu.destination_npi,
        source=pdu.destination,
        destination_ton=pdu.source_ton,
        destination_npi=pdu.source_npi,
        destination=pdu.source,
        esm_class=_RECEIPT,
        data_coding=coding,
        short_message=octets,
        tlvs=[
            (Tag.RECEIPTED_MESSAGE_ID.value, message_id.encode() + b"\0"),
            (Tag.MESSAGE_STATE.value, _DELIVERED),
        ],
    )


class _Link(asyncio.Protocol):
    """One connection: bytes between the socket and its session, and one timer."""

    def __init__(self, smsc: Smsc, loop: asyncio.AbstractEventLoop) -> None:
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
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._smsc.joined(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        now = self._loop.time()
        self._handle(self.session.receive(data, now), now)

    def connection_lost(self, exc: Exception | None) -> None:
        now = self._loop.time()
        self._smsc.left(self)
        self._handle(self.session.closed_by_peer(now), now)
        if self._timer is not None:
            self._timer.cancel()
        self.gone.set_result(None)

    def pause_writing(self) -> None:
        # A peer that does not read is not read from either: its requests would only pile up answers.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def flush(self) -> None:
        """Write what the session has to say, and see to it that its next deadline is not missed."""
        if data := self.session.data_to_send():
            self._transport.write(data)
        due = self.session.next_deadline()
        if due is not None and (self._timer is None or due < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._tick)

    def say_goodbye(self) -> None:
        """Unbind, or hang up on who never bound."""
        if self.session.state in _BOUND:
            self.session.unbind(self._loop.time())
            self.flush()
        else:
            self._transport.close()

    def hang_up(self) -> None:
        """End the connection now, whatever was still to be written."""
        self._transport.abort()

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._handle(self.session.tick(now), now)

    def _handle(self, events: list[Event], now: float) -> None:
        smsc = self._smsc
        lost = []
        for event in events:
            match event:
                case Response():
                    smsc.answered(event)
                case Request():
                    smsc.submitted(self, event, now)
                case RequestLost():
                    lost.append(event)
                case BindRequested():
                    status = smsc.may_bind(event.pdu)
                    if status == Status.ESME_ROK:
                        self.session.accept_bind(event.pdu, "simulator", now)
                    else:
                        self.session.refuse_bind(event.pdu, status, now)
        if lost:
            smsc.lost(lost, with_link=self.session.closed)
        self.flush()
        if self.session.closed:
            self._transport.close()
        smsc.changed()
