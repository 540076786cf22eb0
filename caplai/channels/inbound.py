"""From phones: what a carrier delivers is stored in batches, then answered; never with an OK before."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import psycopg

from caplai.channels.connection import Connection
from caplai.channels.links import Link
from caplai.smpp import receipt, text
from caplai.smpp.pdu import ShortMessage, Status, Tag, find_tlv, status_name
from caplai.store import queues
from caplai.store.db import DatabaseThreads, is_at_fault_itself
from caplai.store.queues import Arrival, Suspect
from caplai.watch import metrics, tracing, trail

log = logging.getLogger(__name__)

GATHER = 0.004
"""Seconds that a delivery waits for its neighbours, so that they share one commit."""
BATCH = 500
PATIENCE = 3.5
"""Seconds until a delivery that could not be stored is answered "try again": a real SMSC waits about five."""
SUSPICION = 65.0
"""Seconds after a bind in which a delivery may be one that an earlier connection did not acknowledge:
the 60 of service.md and a margin for the carrier's clock."""
MOST_WAITING = 5000
"""Deliveries that may wait for their answer, long ones counting for several; more are refused for now at once."""
MOST_DOUBTFUL = 50_000
"""Messages remembered as perhaps stored; with more, every message is looked up in the store for a while."""
MOST_UNREAD = 50_000
"""Answers remembered as perhaps unread by the carrier; beyond them the oldest are taken for read."""
LONGEST_ADDRESS = 255
"""Octets; SMPP allows 20 (64 in data_sm), and the tables' indexes some thousand."""
SEGMENT_PATIENCE = timedelta(seconds=60)
"""How long the parts of a long message wait for each other."""

_T = TypeVar("_T")
_Twin = tuple[str, str, bytes]
_Arrived = tuple[Connection, ShortMessage, float]


def _twin(pdu: ShortMessage) -> _Twin:
    """What makes two deliveries of one link the same message: addresses and body (service.md)."""
    # Parts by SAR may have equal bodies; their number tells them apart.
    number = find_tlv(pdu.tlvs, Tag.SAR_SEGMENT_SEQNUM) if pdu.tlvs else None
    return pdu.source, pdu.destination, pdu.payload + (number or b"")


def _fingerprint(pdu: ShortMessage) -> bytes:
    """A twin in few octets, for those that are remembered for long."""
    return hashlib.blake2b(repr(_twin(pdu)).encode(), digest_size=16).digest()


def _weight(pdu: ShortMessage) -> int:
    """For how many ordinary messages this one counts in memory."""
    return 1 + len(pdu.payload) // 256


def _part(pdu: ShortMessage) -> tuple[text.Part | None, bytes]:
    """Which part of a long message this is, by UDH or by SAR parameters (SMPP 3.4, 5.3.2.22 to 24), and its body."""
    if pdu.esm_class & text.UDH_INDICATOR:
        return text.parse_udh(pdu.payload)
    numbers = [find_tlv(pdu.tlvs, tag) for tag in _SAR] if pdu.tlvs else []
    if numbers and all(numbers):
        reference, total, number = (int.from_bytes(value or b"", "big") for value in numbers)
        if 1 <= number <= total <= 255 and reference <= 0xFFFF:
            return text.Part(reference, total, number), pdu.payload
    return None, pdu.payload


def _wrong_address(pdu: ShortMessage) -> Status | None:
    """The refusal of a message whose addresses no table could hold. No phone has sent it."""
    if len(pdu.source) > LONGEST_ADDRESS:
        return Status.ESME_RINVSRCADR
    return Status.ESME_RINVDSTADR if len(pdu.destination) > LONGEST_ADDRESS else None


_SAR = (Tag.SAR_MSG_REF_NUM, Tag.SAR_TOTAL_SEGMENTS, Tag.SAR_SEGMENT_SEQNUM)


def _in_time(conn: psycopg.Connection, arrived: float, function: Callable[..., _T], *args: object) -> _T:
    """`function(conn, …, waited)`, unless we hung and the carrier has long delivered to another engine: OSError then.

    (Once the transaction is open, the server ends it if we hang: store/db.py.)
    """
    waited = time.monotonic() - arrived
    if waited > PATIENCE:
        raise TimeoutError
    return function(conn, *args, waited)


class Inbound:
    """The deliveries of one link. `on_stored` is called when there is something to decide; `store_is(well)` each
    time the store has answered or failed.
    """

    def __init__(
        self,
        link: Link,
        database: DatabaseThreads,
        on_stored: Callable[[], None],
        store_is: Callable[[bool], None],
    ) -> None:
        self._link = link
        self._database = database
        self._on_stored = on_stored
        self._store_is = store_is
        self._arrived: list[_Arrived] = []
        self._arrival = asyncio.Event()
        self._storing: list[_Arrived] = []
        self._refused: set[int] = set()
        """Those of the batch under way (by id()) that were answered "try again" because it took too long."""
        # Deliveries that wait for their answer, and those that were answered "try again" although they are
        # stored, or may be: they will come again.
        self._unanswered: dict[_Twin, list[tuple[Connection, ShortMessage]]] = {}
        self._doubtful: dict[bytes, float] = {}  # by _fingerprint
        self._all_doubtful_until = 0.0
        # What was answered with an OK that the carrier may not have read yet: where and when, the oldest first.
        self._unread: dict[_Twin, tuple[Connection, float]] = {}
        self._waiting = 0
        self._told_address = False

    @property
    def busy(self) -> bool:
        """Whether a delivery waits for its answer."""
        return bool(self._unanswered)

    def wake(self) -> None:
        """A connection can store now (it has got its row)."""
        self._arrival.set()

    def arrive(self, connection: Connection, pdu: ShortMessage) -> None:
        if wrong := _wrong_address(pdu):
            if not self._told_address:
                self._told_address = True
                log.warning(
                    "link %s: refusing addresses of more than %d octets", self._link.name, LONGEST_ADDRESS
                )
            self._respond(connection, pdu, wrong)
            return
        twin = _twin(pdu)
        waiting = self._unanswered.get(twin)
        if self._waiting >= MOST_WAITING:
            if waiting is not None:
                self._doubt(connection, pdu)
            self._respond(connection, pdu, self._link.try_again_status)
            return
        self._waiting += _weight(pdu)
        if waiting is not None:
            waiting.append((connection, pdu))  # the carrier asks again before we answered: the same message
        else:
            if self._may_be_unread(twin):
                self._doubt(connection, pdu)  # the carrier's patience has ended before our OK came
            self._unanswered[twin] = [(connection, pdu)]
            self._arrived.append((connection, pdu, time.monotonic()))
            self._arrival.set()

    async def store_arrivals(self) -> None:
        """Store what arrives, one batch after the other.

        The next batch waits until the one before has ended in the store, answered or not: so whoever is
        delivered again after a late commit finds its twin there.
        """
        while True:
            await self._arrival.wait()
            await asyncio.sleep(GATHER)
            ready = [item for item in self._arrived if item[0].store_session is not None]
            if not ready:
                self._arrival.clear()  # wake() sets it again
                continue
            batch = ready[:BATCH]
            taken = {id(item[1]) for item in batch}
            self._arrived = [item for item in self._arrived if id(item[1]) not in taken]
            if not self._arrived:
                self._arrival.clear()
            self._storing = batch
            try:
                for connection in {item[0] for item in batch}:
                    await self._store(connection, [item for item in batch if item[0] is connection])
            finally:
                self._storing = []
                self._refused.clear()
            self._on_stored()

    async def refuse_the_late(self) -> None:
        """What is not stored in time is answered "try again", so that the carrier keeps it."""
        while True:
            await asyncio.sleep(0.1)
            late = time.monotonic() - PATIENCE
            for _, pdu, arrived in self._storing:
                if arrived < late and id(pdu) not in self._refused:
                    self._refused.add(id(pdu))
                    self._answer(pdu, self._link.try_again_status)
                    # A store that hangs may answer in the end, and no statement ever fails.
                    self._store_is(False)
            waiting = [item for item in self._arrived if item[2] < late]
            if waiting:
                gone = {id(item[1]) for item in waiting}
                self._arrived = [item for item in self._arrived if id(item[1]) not in gone]
                for _, pdu, _ in waiting:
                    self._answer(pdu, self._link.try_again_status)

    async def _store(self, connection: Connection, items: list[_Arrived]) -> None:
        """Commit deliveries of one connection, then answer them."""
        try:
            first = min(arrived for _, _, arrived in items)
            await self._commit(connection, [pdu for _, pdu, _ in items], first)
        except Exception as error:
            if not is_at_fault_itself(error):
                self._store_failed(items, error)
            elif len(items) > 1:
                # Our own code fails on one of them: only that one is refused, for good.
                for item in items:
                    await self._store(connection, [item])
            else:
                log.exception("link %s: %r cannot be stored", self._link.name, items[0][1])
                self._answer(items[0][1], Status.ESME_RX_P_APPN)
        else:
            self._store_is(True)
            for _, pdu, _ in items:
                if id(pdu) in self._refused:
                    self._doubt(connection, pdu)  # it is stored, yet was answered "try again" meanwhile
                else:
                    self._answer(pdu, Status.ESME_ROK)

    def _store_failed(self, items: list[_Arrived], error: Exception) -> None:
        self._store_is(False)
        for connection, pdu, _ in items:
            if id(pdu) not in self._refused:
                self._answer(pdu, self._link.try_again_status)
            if not (isinstance(error, psycopg.Error) and error.sqlstate):
                self._doubt(connection, pdu)  # the server said nothing: it may have committed all the same

    async def _commit(self, connection: Connection, pdus: list[ShortMessage], first: float) -> None:
        link = self._link.name
        receipts = [self._receipt(pdu) for pdu in pdus if receipt.is_receipt(pdu)]
        if receipts:
            unmatched = await self._database.run(queues.accept_receipts, link, receipts)
            metrics.unmatched.labels(link).inc(unmatched)
            for found in receipts:
                metrics.receipts.labels(link, metrics.receipt_state(found["state"])).inc()
        arrivals = [self._to_store(connection, pdu) for pdu in pdus if not receipt.is_receipt(pdu)]
        if arrivals:
            began = time.monotonic()
            stored = await self._database.run(
                _in_time, first, queues.accept, link, connection.store_session, arrivals, self._join
            )
            connection.acknowledged.append((time.monotonic(), stored.at))
            metrics.redelivered.labels(link).inc(stored.known)
            metrics.segments.labels(link).inc(sum(arrival.text is None for arrival in arrivals))
            self._tell(stored.ids)
            tracing.record("accept", time.monotonic() - began, stored.ids, link=link)

    def _tell(self, ids: list[int]) -> None:
        metrics.received.labels(self._link.name).inc(len(ids))
        trail.ACCEPTED.write(((id_,) for id_ in ids), self._link.name)

    def _doubt(self, connection: Connection, pdu: ShortMessage) -> None:
        """This message may come again although it is stored: to us, or to whoever has the link by then."""
        until = connection.doubtful_until = time.monotonic() + queues.REDELIVERY.total_seconds()
        if len(self._doubtful) >= MOST_DOUBTFUL:
            self._doubtful.clear()
            self._all_doubtful_until = until
        self._doubtful[_fingerprint(pdu)] = until

    def _answer(self, pdu: ShortMessage, status: int) -> None:
        """Answer a delivery, and whatever else the carrier asked of the same message meanwhile."""
        if status != Status.ESME_ROK:
            metrics.refused.labels(self._link.name, status_name(status)).inc()
        twin = _twin(pdu)
        for connection, asked in self._unanswered.pop(twin, ()):
            self._waiting -= _weight(asked)
            self._respond(connection, asked, status)
            if status == Status.ESME_ROK:
                self._unread.pop(twin, None)
                self._unread[twin] = connection, time.monotonic()
        if len(self._unread) > MOST_UNREAD:
            del self._unread[next(iter(self._unread))]

    def _may_be_unread(self, twin: _Twin) -> bool:
        """Whether the carrier may not have read our OK to this message: it has answered nothing that we asked later
        on that connection (service.md, "an acknowledgement that may not have arrived").
        """
        connection, at = self._unread.get(twin, (None, 0.0))
        if connection is None or time.monotonic() - at > queues.REDELIVERY.total_seconds():
            return False
        return connection.session.confirmed_at is None or connection.session.confirmed_at <= at

    def _respond(self, connection: Connection, pdu: ShortMessage, status: int) -> None:
        connection.session.respond(pdu, status, now=time.monotonic())
        connection.flush_soon()

    def _to_store(self, connection: Connection, pdu: ShortMessage) -> Arrival:
        now = time.monotonic()
        suspect = Suspect.NO
        if self._all_doubtful_until > now or (
            self._doubtful and self._doubtful.get(_fingerprint(pdu), 0.0) > now
        ):
            suspect = Suspect.ANY
        elif self._link.binds > 1 or (
            connection.bound_at is not None and now - connection.bound_at < SUSPICION
        ):
            # With several binds, what one of them did not acknowledge comes again by another, however old that is.
            suspect = Suspect.UNCONFIRMED
        arrival = Arrival(
            pdu.source,
            pdu.source_ton,
            pdu.source_npi,
            pdu.destination,
            pdu.data_coding,
            None,
            suspect=suspect,
        )
        part, body = _part(pdu)
        if part is None:
            arrival.text = self._decode(pdu.data_coding, body)
        else:
            arrival.reference, arrival.total, arrival.number = part.reference, part.total, part.number
            arrival.payload = body
        return arrival

    def _decode(self, coding: int, payload: bytes) -> str:
        # PostgreSQL cannot hold the character NUL.
        return text.decode(coding, payload, default=self._link.default_alphabet).text.replace("\0", "\ufffd")

    def _join(self, coding: int, parts: dict[int, bytes], total: int) -> str:
        """The text of a long message. A part that never came leaves a mark, so that no digits run together."""
        if len(parts) == total:
            return self._decode(coding, text.assemble(parts))
        return " … ".join(self._decode(coding, parts[number]) for number in sorted(parts)) + " …"

    def _receipt(self, pdu: ShortMessage) -> dict[str, Any]:
        found = receipt.parse(self._decode(pdu.data_coding, pdu.payload), pdu.tlvs)
        ids = receipt.id_candidates(found.message_id) if found.message_id else []
        return {"message_ids": ids, "state": found.state, "error": found.error}

    async def tidy(self) -> None:
        """Forget doubts whose time is over, and join what waited too long for its other parts."""
        now = time.monotonic()
        self._doubtful = {which: until for which, until in self._doubtful.items() if until > now}
        self._unread = {twin: answer for twin, answer in self._unread.items() if self._may_be_unread(twin)}
        try:
            joined = await self._database.run(
                queues.sweep_segments, self._link.name, self._join, SEGMENT_PATIENCE
            )
        except psycopg.Error:
            self._store_is(False)
        else:
            self._tell(joined)
