"""To phones: what is due is claimed, made into text in memory only, submitted, and settled by its answer."""

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

import psycopg

from caplai.channels.connection import Connection
from caplai.channels.links import Link
from caplai.domain.issuing import Keyring
from caplai.service.deliver import KEY_RETRY, Verdict, compose, drop_dead, postpone, settle
from caplai.smpp import text
from caplai.smpp.pdu import Command, EncodeError, ShortMessage, Status, status_name
from caplai.smpp.receipt import bare_id
from caplai.smpp.session import RequestLost, Response
from caplai.store import queues
from caplai.store.db import DatabaseThreads
from caplai.store.keyring import KeyringError
from caplai.store.queues import Due, Settled
from caplai.watch import metrics, tracing, trail

log = logging.getLogger(__name__)

GATHER = 0.004
"""Seconds that a result waits for its neighbours, so that they share one commit."""
BATCH = 500
LEASE = timedelta(seconds=90)
"""How long a claimed message is ours: longer than any window of unanswered submits stays open."""
QUIET = (0.5, 5.0)
"""Seconds that a carrier which throttles is left alone: at first, and at the most."""
REFUSALS = 10
"""So many messages refused in a row "for now", for whatever reason, are taken as throttling."""
PARTS_WITHIN = 20.0
"""Seconds after its claim in which parts of a message are submitted: with their answers, less than the lease."""
MOST_PARTLY_ACCEPTED = 1000
"""Messages of which we remember what parts the carrier took; of more, some are sent again as a whole."""
MOST_TOLD = 5000
"""Final results that are remembered although another engine held the message when they came."""
LONGEST_MESSAGE_ID = 255
"""Octets; SMPP allows 64. A longer one is not kept: it would not fit the index that receipts are matched by."""
MOST_WAITING = 3000
"""Replies that may wait for the window, and for how many seconds, much less than LEASE."""
WAIT_AT_MOST = 20.0
POLL = 1.0
"""Seconds between looks at the outbox when nobody wakes us."""


@dataclass(slots=True)
class _Message:
    """A message on its way, in as many submits as it has parts."""

    due: Due
    total: int
    unsent: deque[tuple[int, ShortMessage]]
    accepted: dict[int, str]
    """The parts that the carrier has taken, and its message_id of each."""
    until: float
    unanswered: int = 0
    verdict: Verdict = Verdict.SENT
    status: int | None = None

    def fail(self, verdict: Verdict, status: int | None) -> None:
        """It cannot arrive as a whole this time: nothing more of it is sent."""
        self.unsent.clear()
        if self.verdict is not Verdict.NEVER:
            self.verdict, self.status = verdict, status


class Places(NamedTuple):
    """Room that is kept for replies that are being decided, since when."""

    room: int
    since: float


class Outbound:
    """The messages of one link. `sender()` is the connection to submit on now, if there is one."""

    def __init__(
        self,
        link: Link,
        database: DatabaseThreads,
        keyring: Callable[[], Keyring],
        engine: str,
        sender: Callable[[], Connection | None],
        store_is: Callable[[bool], None],
    ) -> None:
        self._link = link
        self._database = database
        self._keyring = keyring
        self._engine = engine
        self._sender = sender
        self._sender_address = lru_cache(256)(link.sender_address)
        self._store_is = store_is
        self._stopping = False
        self._due = asyncio.Event()
        self._freed = asyncio.Event()
        self._lacking: set[str | None] = set()
        """The issuing keys that this host was found to lack."""
        self._settled: list[Settled] = []
        self._seen = _Seen(link.name)
        self._settled_event = asyncio.Event()
        self._unwritten = 0
        self._claiming = False
        self._reserved = 0
        """Places among those that wait, kept for what is being decided."""
        self._waiting: deque[tuple[Due, float]] = deque()
        """What was handed over or claimed, and when; it waits for the window."""
        self._look_at = -math.inf
        """When to claim although there is enough to submit."""
        self._drained_at = -math.inf
        """When a claim last left nothing that is due."""
        self._released_at = -math.inf
        """When claims of ours were last made due, for whoever claims them."""
        self._unsure = False
        """Whether there may be claims of ours that we do not know of."""
        self._in_flight = 0
        self._begun: list[_Message] = []
        self._accepted: dict[int, dict[int, str]] = {}
        self._refused_in_a_row = 0
        self._held: set[int] = set()
        """Messages that were claimed here and whose result is not written yet."""
        self._claimed_again: dict[int, Due] = {}
        """Of these, the latest claim of each that was made although it was held."""
        self._written: set[int] = set()
        """Messages whose result was written since the latest claim was asked for."""
        self._told: dict[int, Settled] = {}
        """Final results that may not have been written, because another engine held the message."""
        self._quiet = 0.0
        self._quiet_until = 0.0
        self._asked_until = 0.0
        """Until then the one message that asks whether the throttling is over may be answered."""
        self._allowance = 0.0
        self._allowance_at = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether messages are being claimed, a submit waits for its answer, or a result for being written."""
        return bool(self._claiming or self._reserved or self._waiting or self._in_flight or self._unwritten)

    def wake(self) -> None:
        """Something may be due."""
        self._due.set()

    def reserve(self, most: int) -> Places:
        """Keep places for replies that are to be handed over, `most` at most, until `take`. None while older ones are
        due: they come first.
        """
        now = time.monotonic()
        drained = now - self._drained_at < 2 * POLL
        if self._sender() is None or self._stopping or self._quiet or self._begun or not drained:
            return Places(0, now)
        if self._unwritten >= 4 * BATCH:
            return Places(0, now)
        room = max(0, min(most, self._places() - self._reserved))
        self._reserved += room
        return Places(room, now)

    def _places(self) -> int:
        """How many more may wait for the window; with TPS no more than a second's."""
        return (min(MOST_WAITING, self._link.tps) if self._link.tps else MOST_WAITING) - len(self._waiting)

    def take(self, dues: list[Due], kept: Places) -> None:
        """Submit what was handed over, as if it had been claimed, and let go of the places kept for it."""
        self._reserved -= kept.room
        now = time.monotonic()
        if dues and (kept.since <= self._released_at or now - kept.since > WAIT_AT_MOST):
            self.doubt()  # they may have been made due meanwhile, and have been claimed since
            return
        self._line_up(dues, now)
        self._submit_waiting(None if self._stopping else self._sender())

    def _submit_waiting(self, connection: Connection | None) -> None:
        """Submit what waits for the window, as that and TPS allow."""
        if not self._waiting:
            return
        waiting, ring, now = self._waiting, self._ring(), time.monotonic()
        dues, since = [], now
        while waiting:
            due, at = waiting[0]
            if connection and now - at < WAIT_AT_MOST and not (connection.session.free and self._allowed()):
                break
            waiting.popleft()
            if connection is None or now - at >= WAIT_AT_MOST:
                self._settle(postpone(due, 0.0))  # for whoever claims it
                continue
            due.age += now - at
            since = min(since, at)
            dues.append(due)
            self._submit(connection, due, ring)
        if connection and dues:
            connection.flush()
            self._seen.submitted(dues, time.monotonic() - since)

    def _line_up(self, dues: Iterable[Due], since: float) -> None:
        """Claims of ours, made at `since`, wait for the window."""
        for due in dues:
            # Another engine, which took the link from us and lost it, may have made it due again. Its answer is still
            # to come, or to be written, and settles this claim too; or it is written, and we shall know in a moment.
            if due.id in self._held:
                self._claimed_again[due.id] = due
                continue
            self._held.add(due.id)
            if told := self._told.pop(due.id, None):
                self._settle(told)
            # An older result, written once more because nobody knew whether it was, may have ended this very claim.
            elif due.id in self._written:
                self._settle(postpone(due, 0.0))
            else:
                self._waiting.append((due, since))

    def released(self) -> None:
        """All that was claimed on the link is due at once: only who claims it from now on may submit it."""
        for due, _ in self._waiting:
            self._held.discard(due.id)
            self._claimed_again.pop(due.id, None)
        self._waiting.clear()
        self._released_at = time.monotonic()

    def doubt(self) -> None:
        """A commit may have gone through that wrote replies as claimed by us, and nobody handed them over."""
        self._unsure = True
        self._due.set()

    def room(self) -> None:
        """A connection has room for submits."""
        self._freed.set()

    def stop(self) -> None:
        """Claim nothing new."""
        self._stopping = True
        self._submit_waiting(None)
        self._due.set()

    def answered(self, event: Response) -> None:
        """The SMSC answered a submit."""
        message, number = self._off_the_wire(event)
        pdu = event.pdu
        result = Verdict.SENT if event.accepted else self._link.verdict(pdu.status or Status.ESME_RUNKNOWNERR)
        self._heed(result)
        if result is Verdict.SENT:
            message_id = getattr(pdu, "message_id", "")
            message.accepted[number] = message_id if len(message_id) <= LONGEST_MESSAGE_ID else ""
            if message.verdict is Verdict.SENT:
                message.status = pdu.status
        else:
            message.fail(result, pdu.status)
        if not (message.unanswered or message.unsent):
            message.due.age += time.monotonic() - event.sent_at
        self._advance(message)

    def lost(self, event: RequestLost) -> None:
        """No answer will come to a submit."""
        message, _ = self._off_the_wire(event)
        metrics.lost.labels(self._link.name).inc()
        message.fail(Verdict.AGAIN, None)
        self._advance(message)

    def _off_the_wire(self, event: Response | RequestLost) -> tuple[_Message, int]:
        assert isinstance(event.context, tuple)
        message, number = event.context
        message.unanswered -= 1
        self._asked_until = 0.0
        self._freed.set()
        return message, number

    def _advance(self, message: _Message) -> None:
        """Settle a message whose submits are all answered; one that has parts left goes on by itself."""
        if message.unanswered or message.unsent:
            return
        self._in_flight -= 1
        due, verdict = message.due, message.verdict
        if len(message.accepted) < message.total and message.accepted and verdict is not Verdict.NEVER:
            self._accepted[due.id] = message.accepted  # the others are sent once more, not these
            if len(self._accepted) > MOST_PARTLY_ACCEPTED:
                del self._accepted[next(iter(self._accepted))]
        message_id = bare_id(message.accepted.get(message.total, "")) if self._link.receipts else None
        self._settle(
            settle(due, verdict, datetime.now(UTC), status=message.status, message_id=message_id or None)
        )

    async def send_due(self) -> None:
        """Claim what is due, as much as fits the window, and submit it."""
        while not self._stopping or self._begun:
            connection = self._sender()
            self._go_on(connection)
            self._submit_waiting(connection)
            room = 0
            if connection and not self._stopping:
                room = min(connection.session.free, self._allowed())
            # While the queue is never empty somebody must still look for what is older.
            look = room if not self._waiting else self._places() if time.monotonic() > self._look_at else 0
            claimed: list[Due] = []
            began = time.monotonic()
            if connection and look > 0 and not self._stopping and self._unwritten < 4 * BATCH:
                self._written.clear()
                self._claiming = True
                self._look_at = began + POLL
                most = min(look, BATCH)
                try:
                    if self._unsure:
                        await self._database.run(
                            queues.release_unheld, self._link.name, self._engine, list(self._held)
                        )
                        self._unsure = False
                        self._released_at = time.monotonic()
                    claimed = await self._database.run(
                        queues.claim_outbox, self._link.name, self._engine, most, LEASE
                    )
                    self._drained_at = time.monotonic() if len(claimed) < most else -math.inf
                except psycopg.Error:
                    self._unsure = True
                    self._store_is(False)
                    await asyncio.sleep(POLL)
                finally:
                    self._claiming = False
                connection = self._sender()  # we may have hung meanwhile, and somebody else holds the link
            self._line_up(claimed, began)
            self._submit_waiting(connection)
            if len(claimed) < room or room == 0:
                await self._wait_for_work(room, connection)

    async def _wait_for_work(self, room: int, connection: Connection | None) -> None:
        event = self._due if room and not self._begun else self._freed
        pause = POLL
        if (quiet := self._quiet_until - time.monotonic()) > 0:
            pause = quiet
        elif not room and self._link.tps and not self._quiet and connection and connection.session.free:
            pause = 1 / self._link.tps
        try:
            async with asyncio.timeout(pause):
                await event.wait()
        except TimeoutError:
            pass  # the slow poll is the safety net
        event.clear()

    def _allowed(self) -> int:
        """How many submits the carrier allows now: none while it wants to be left alone, and then one to see
        whether it still does; else a bucket that holds a tenth of a second of its TPS.
        """
        now = time.monotonic()
        allowed = BATCH
        if self._link.tps:
            room = max(1.0, self._link.tps / 10)
            self._allowance = min(room, self._allowance + (now - self._allowance_at) * self._link.tps)
            self._allowance_at = now
            allowed = int(self._allowance)
        if self._quiet:
            return min(1, allowed) if now >= max(self._quiet_until, self._asked_until) else 0
        return allowed

    def _ring(self) -> Keyring | None:
        """The issuing keys as they are now; None where the keyring cannot be read."""
        try:
            return self._keyring()
        except KeyringError:
            return None

    def _remember(self, batch: list[Settled]) -> None:
        """Others hold some of these by now, so that what the carrier said of them could not be written. If they are
        given back to us we shall know it.
        """
        self._told.update((settled.id, settled) for settled in batch if settled.state in ("sent", "failed"))
        for id_ in list(self._told)[: max(0, len(self._told) - MOST_TOLD)]:
            del self._told[id_]

    def _submit(self, connection: Connection | None, due: Due, ring: Keyring | None) -> None:
        if dead := drop_dead(due):
            self._settle(dead)
            return
        if not due.destination:  # an answer to a message that came from nowhere
            self._settle(settle(due, Verdict.NEVER, datetime.now(UTC)))
            return
        if connection is None or not connection.session.free:
            self._settle(postpone(due, 0.0))
            return
        try:
            words = compose(due, ring)
            pdus = None if words is None else self._submits(due, words)
        except Exception:  # a row that can never be sent must not take the others with it
            log.exception("link %s: message %d cannot be sent", self._link.name, due.id)
            self._settle(settle(due, Verdict.NEVER, datetime.now(UTC)))
            return
        if pdus is None:
            if due.key not in self._lacking:
                log.error("link %s: this host lacks an issuing key; replies wait for it", self._link.name)
            self._lacking.add(due.key)
            self._settle(postpone(due, KEY_RETRY))
            return
        self._lacking.discard(due.key)
        self._seen.submit(due)
        self._in_flight += 1
        accepted = self._accepted.pop(due.id, {})
        unsent = deque((number, pdu) for number, pdu in enumerate(pdus, 1) if number not in accepted)
        message = _Message(due, len(pdus), unsent, accepted, time.monotonic() + PARTS_WITHIN)
        self._send_parts(connection, message)
        if message.unsent:
            self._begun.append(message)

    def _go_on(self, connection: Connection | None) -> None:
        """Send the further parts of messages, as window and TPS allow. What stops halfway is tried again later."""
        for message in self._begun:
            if message.unsent and time.monotonic() > message.until:
                message.fail(Verdict.AGAIN, None)
                self._advance(message)
            elif message.unsent and connection:
                self._send_parts(connection, message)
        if self._begun and connection:
            connection.flush()
        self._begun = [message for message in self._begun if message.unsent]

    def _send_parts(self, connection: Connection, message: _Message) -> None:
        while message.unsent and connection.session.free and self._allowed():
            number, pdu = message.unsent.popleft()
            try:
                connection.session.request(pdu, time.monotonic(), (message, number))
            except EncodeError:  # such as an address that is not Latin-1
                log.error("link %s: message %d cannot be written as SMPP", self._link.name, message.due.id)
                message.fail(Verdict.NEVER, None)
                self._advance(message)
                return
            message.unanswered += 1
            if self._quiet:
                self._asked_until = time.monotonic() + QUIET[1]
            if self._link.tps:
                self._allowance -= 1

    def _submits(self, due: Due, words: str) -> list[ShortMessage]:
        """The text as submits: one, or as many as it has parts. Sent again they are the same, reference included."""
        link = self._link
        coding, _ = text.encode(words, default=link.default_alphabet)
        payloads = text.split(words, due.id, default=link.default_alphabet)
        ton, npi, sender = self._sender_address(due.sender)
        return [
            ShortMessage(
                Command.SUBMIT_SM,
                source_ton=ton,
                source_npi=npi,
                source=sender,
                destination_ton=link.phone_ton if due.destination_ton is None else due.destination_ton,
                destination_npi=link.phone_npi if due.destination_npi is None else due.destination_npi,
                destination=due.destination,
                esm_class=text.UDH_INDICATOR if len(payloads) > 1 else 0,
                # The last part stands for the whole: its message_id is the one that is kept.
                registered_delivery=1 if link.receipts and number == len(payloads) else 0,
                data_coding=coding,
                short_message=payload,
            )
            for number, payload in enumerate(payloads, 1)
        ]

    def _heed(self, verdict: Verdict) -> None:
        """Leave a carrier alone for a while, longer each time, that throttles, or refuses whatever comes."""
        if verdict in (Verdict.SENT, Verdict.NEVER):
            self._quiet = 0.0
            self._refused_in_a_row = 0
            return
        self._refused_in_a_row += 1
        now = time.monotonic()
        # Not for each message of the window that it refuses.
        if (verdict is Verdict.WAIT or self._refused_in_a_row >= REFUSALS) and now >= self._quiet_until:
            self._quiet = min(max(self._quiet * 2, QUIET[0]), QUIET[1])
            self._quiet_until = now + self._quiet
            metrics.throttles.labels(self._link.name).inc()

    def _settle(self, settled: Settled) -> None:
        self._settled.append(settled)
        self._unwritten += 1
        self._settled_event.set()

    async def write_settled(self) -> None:
        """Write what became of messages, batch by batch. What cannot be written is sent again after its lease."""
        while True:
            await self._settled_event.wait()
            await asyncio.sleep(GATHER)
            self._settled_event.clear()
            batch, self._settled = self._settled, []
            try:
                count = await self._database.run(queues.settle_outbox, self._engine, batch)
            except psycopg.Error:
                self._store_is(False)
                self._settled = batch + self._settled
                self._settled_event.set()
                await asyncio.sleep(0.5)
            else:
                self._unwritten -= len(batch)
                written = {settled.id for settled in batch}
                self._written |= written
                if count < len(batch):
                    self._remember(batch)
                # Whom the result came too early for, gives its claim back; to any other this changes nothing. Not at
                # once: it would be claimed before this is written.
                again = [due for id_ in written if (due := self._claimed_again.pop(id_, None))]
                for due in again:
                    self._settle(postpone(due, POLL))
                self._held -= written.difference(due.id for due in again)
                self._seen.settled(batch)
                pauses = [settled.again_in for settled in batch if settled.state == "ready"]
                if pauses:
                    asyncio.get_running_loop().call_later(min(pauses), self.wake)


class _Seen:
    """What is to be seen of the messages to phones, told batch by batch so that it costs each of them little."""

    def __init__(self, link: str) -> None:
        self._link = link
        self._in_hand: dict[int, Due] = {}
        self._submits: list[Due] = []

    def submit(self, due: Due) -> None:
        """It is submitted."""
        self._submits.append(due)

    def submitted(self, claimed: list[Due], took: float) -> None:
        """Tell of the submits among these, which were claimed and submitted within so many seconds."""
        self._in_hand.update((due.id, due) for due in claimed)
        link, submits = self._link, self._submits
        self._submits = []
        if not submits:
            return
        metrics.submits.labels(link).inc(len(submits))
        metrics.resubmits.labels(link).inc(sum(due.attempts > 1 for due in submits))
        metrics.submitted_seconds.observe([due.age for due in submits if due.attempts == 1], link)
        trail.SUBMITTED.write(
            ((due.inbox_id, due.id, due.kind, due.attempts, due.age) for due in submits), link
        )
        tracing.record("submit", took, (due.inbox_id for due in submits), link=link)

    def settled(self, batch: list[Settled]) -> None:
        """Tell what became of these, as the store has it now."""
        link = self._link
        # A message may be settled twice: when a database that was away comes back after the lease has run out.
        both = [(due, settled) for settled in batch if (due := self._in_hand.pop(settled.id, None))]
        for state, count in Counter(settled.state for settled in batch).items():
            metrics.settled.labels(link, state).inc(count)
        for status, count in Counter(settled.status for settled in batch).items():
            if status is not None:
                metrics.answers.labels(link, metrics.status(status_name(status))).inc(count)
        metrics.answered_seconds.observe([due.age for due, settled in both if settled.state == "sent"], link)
        trail.SETTLED.write(
            (
                (due.inbox_id, due.id, settled.state, due.attempts, _status(settled.status), due.age)
                for due, settled in both
            ),
            link,
        )


def _status(status: int | None) -> str | None:
    return None if status is None else status_name(status)
