"""A carrier's message centre: phones on one side, ESMEs bound over SMPP 3.4 on the other.

It keeps what a phone sent until an ESME took it, refused it for good, or it expired, as a real one does.
All in one event loop, without a task or a timer for each message. (§ numbers: "SMPP v3.4 Issue 1.2".)
"""

import asyncio
import heapq
import itertools
import random
import ssl
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from caplai.simulator.fates import Fate, fate
from caplai.simulator.link import BLOWS, Link
from caplai.simulator.phones import Message, Phones, State, read_number
from caplai.simulator.scenarios import Scenarios, Setting
from caplai.simulator.writing import deliveries, receipts
from caplai.smpp.pdu import Bind, ShortMessage, Status, status_name
from caplai.smpp.session import Request, RequestLost, Response
from caplai.smpp.session import State as SessionState
from caplai.smpp.text import UDH_INDICATOR, Part, assemble, decode, parse_udh

TEMPORARY: Final = frozenset(
    {Status.ESME_RSYSERR, Status.ESME_RMSGQFUL, Status.ESME_RTHROTTLED, Status.ESME_RX_T_APPN}
)
"""Answers to a deliver_sm after which the same message is tried again (§5.1.3); any other error is final."""

_MOST_UNFINISHED = 1000  # long texts to phones of which a part is missing; the oldest is forgotten
_MOST_FROZEN = 50  # half-open connections that are kept; the oldest is cut


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
    """One deliver_sm to get across: a part of a phone's text, or a receipt (`of` is None).

    `suffered` names the scenarios that happened to it: each does so once, so that every message gets through.
    """

    pdu: ShortMessage
    expires: float
    of: _Outgoing | None
    lost: int = 0
    pause: float = 0.0
    suffered: tuple[str, ...] = ()


class Smsc:
    """The message centre of `phones`; ESMEs bind with this `system_id` and `password`.

    `scenarios` are what it does wrong; they may be switched at any time.
    """

    def __init__(
        self,
        phones: Phones,
        *,
        system_id: str = "caplai",
        password: str = "secret",  # noqa: S107  (the sample one, known to everybody)
        rules: Rules | None = None,
        scenarios: Scenarios | None = None,
    ) -> None:
        self.rules = rules or Rules()
        self.scenarios = scenarios or Scenarios()
        self.scenarios.watch(self._switched)
        self._phones = phones
        self._system_id = system_id
        self._password = password
        self._server: asyncio.Server | None = None
        self._links: list[Link] = []
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

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen; returns the port (0 asks for any free one). Raises OSError if it cannot."""
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(lambda: Link(self, self._loop), host, port, ssl=tls)
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

    def cut(self) -> int:
        """Drop every ESME's connection without a word, in the middle of whatever is under way; how many."""
        links = list(self._links)
        for link in links:
            link.hang_up()
        return len(links)

    def shuffle(self, draw: random.Random) -> None:
        """Deliver what is ready in another order than it was sent."""
        ready = list(self._ready)
        draw.shuffle(ready)
        self._ready = deque(ready)

    def _switched(self) -> None:
        """Half-open connections begin, or end, with their scenario."""
        half_open = self.scenarios.find("half-open") is not None
        for link in list(self._links):
            if half_open:
                link.freeze()
            elif link.frozen:
                link.hang_up()

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
        pdus = deliveries(self.scenarios, phone, number, text, self._references)
        message = self._phones.compose(phone, number, text)
        outgoing = _Outgoing(message, len(pdus))
        expires = self._loop.time() + self.rules.validity
        self._ready.extend(_Parcel(pdu, expires, outgoing) for pdu in pdus)
        self._wake()
        return message

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
            link.deliver(parcel.pdu, now, parcel, self._blow(parcel))
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

    def _blow(self, parcel: _Parcel, names: tuple[str, ...] = BLOWS) -> Setting | None:
        """What happens to this delivery now: one of the scenarios with these names, each once."""
        phone = parcel.pdu.source
        if self.scenarios.calm(phone):
            return None
        for name in names:
            if name not in parcel.suffered and (blow := self.scenarios.strike(name, phone)):
                parcel.suffered += (name,)
                return blow
        return None

    def _next_link(self) -> Link | None:
        """The next bind in turn whose window has a free place."""
        links = self._links
        for _ in links:
            self._turn = (self._turn + 1) % len(links)
            if links[self._turn].free:
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

    def may_bind(self, pdu: Bind) -> int:
        """The command_status that answers a bind."""
        if refused := self.scenarios.find("bind-refused"):
            return int(refused.number)
        if pdu.system_id != self._system_id:
            return Status.ESME_RINVSYSID
        return Status.ESME_ROK if pdu.password == self._password else Status.ESME_RINVPASWD

    def joined(self, link: Link) -> None:
        """A connection was made; it is not bound yet."""
        self._links.append(link)
        if self.scenarios.find("half-open"):
            link.freeze()
            frozen = [one for one in self._links if one.frozen]
            if len(frozen) > _MOST_FROZEN:  # its peer left long ago, which nobody reads
                frozen[0].hang_up()

    def left(self, link: Link) -> None:
        """A connection ended."""
        self._links.remove(link)

    def changed(self) -> None:
        """A bind was accepted, or windows have free places again."""
        if self._ready:
            self._wake()

    def answered(self, link: Link, response: Response) -> None:
        """An ESME answered a deliver_sm: it took it, has trouble for now, or refused it."""
        parcel = response.context
        assert isinstance(parcel, _Parcel)
        if lost := self._blow(parcel, ("duplicate", "cut-answers")):
            self._ready.appendleft(parcel)
            if lost.scenario.name == "cut-answers":
                link.break_off()
            self._wake()
        elif response.accepted:
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

    def submitted(self, link: Link, request: Request, now: float) -> None:
        """An ESME hands in a message: answer it, show it on its phone, send the receipt it asked for."""
        pdu = request.pdu
        phone = read_number(pdu.destination)
        what = Fate(Status.ESME_RINVDSTADR) if phone is None else fate(self.scenarios, pdu, phone, now)
        if phone is None or what.status != Status.ESME_ROK:
            self._answer(link, request, what, "")
            return
        message_id = self.rules.message_id(next(self._submits))
        if not self._answer(link, request, what, message_id):
            return  # the session ended in the same breath: unanswered is not accepted, it will come again
        payload, part = pdu.payload, None
        if pdu.esm_class & UDH_INDICATOR:
            part, payload = parse_udh(payload)
        if what.receipt:
            text = decode(pdu.data_coding, payload).text
            after, pdus = receipts(self.scenarios, pdu, phone, message_id, text, what.state)
            if after:
                self._loop.call_later(after, self._queue, pdus)
            else:
                self._queue(pdus)
        if what.reaches:
            self._show(phone, pdu, part, payload)
        if what.cut:
            link.break_off()

    def _answer(self, link: Link, request: Request, what: Fate, message_id: str) -> bool:
        """Answer a submit now, later or never. False when its session has ended."""
        if what.after == 0:
            return link.session.respond(request, what.status, message_id=message_id, now=self._loop.time())
        if what.after is not None:
            self._loop.call_later(what.after, self._answer_late, link, request, what.status, message_id)
        return True

    def _answer_late(self, link: Link, request: Request, status: int, message_id: str) -> None:
        if link.session.respond(request, status, message_id=message_id, now=self._loop.time()):
            link.flush()

    def _queue(self, pdus: list[ShortMessage]) -> None:
        """Receipts go to an ESME like the texts of phones."""
        expires = self._loop.time() + self.rules.validity
        self._ready.extend(_Parcel(pdu, expires, None) for pdu in pdus)
        self._wake()

    def _show(self, phone: str, pdu: ShortMessage, part: Part | None, payload: bytes) -> None:
        """A text, or the part that completes one, arrives at its phone."""
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
