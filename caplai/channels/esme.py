"""The SMS door: one `Esme` keeps one configured link bound, stores what arrives and sends what is due.

smpp/session.py says what the bytes mean; this file only carries them between the socket, the store's
threads and the clock. A delivery is answered after its batch was committed, and never with an OK before.
"""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg

from caplai.channels.connection import Connection
from caplai.channels.links import Link, Tls, verdict
from caplai.domain.issuing import Keyring
from caplai.service.deliver import KEY_RETRY, Verdict, compose, drop_dead, postpone, settle
from caplai.smpp import receipt, text
from caplai.smpp.pdu import BindKind, Command, ShortMessage, Status, Tag, command_name, find_tlv, status_name
from caplai.smpp.session import (
    BindRefused,
    Bound,
    Closed,
    Event,
    Ignored,
    Request,
    RequestLost,
    Response,
)
from caplai.store import queues
from caplai.store.db import DatabaseThreads, is_at_fault_itself
from caplai.store.keyring import KeyringError
from caplai.store.leases import Leases
from caplai.store.queues import Arrival, Due, Settled, Suspect

log = logging.getLogger(__name__)

GATHER = 0.004
"""Seconds that a delivery waits for its neighbours, so that they share one commit."""
BATCH = 500
PATIENCE = 3.5
"""Seconds until a delivery that could not be stored is answered "try again": a real SMSC waits about five."""
SUSPICION = 65.0
"""Seconds after a bind in which a delivery may be one that an earlier connection did not acknowledge:
the 60 of service.md and a margin for the carrier's clock."""
LEASE = timedelta(seconds=90)
"""How long a claimed message is ours: longer than any window of unanswered submits stays open."""
SEGMENT_PATIENCE = timedelta(seconds=60)
"""How long the parts of a long message wait for each other."""
QUIET = (0.5, 20.0)
"""Seconds that a carrier which throttles is left alone: at first, and at the most."""
HEARTBEAT = 1.0
POLL = 1.0
BACKOFF = (0.5, 30.0)
"""Seconds between attempts to connect: the first pause and the longest; each is jittered."""

_Twin = tuple[str, str, bytes]
_Arrived = tuple[Connection, ShortMessage, float]


def _twin(pdu: ShortMessage) -> _Twin:
    """What makes two deliveries of one link the same message: addresses and body (service.md)."""
    return pdu.source, pdu.destination, pdu.payload


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


_SAR = (Tag.SAR_MSG_REF_NUM, Tag.SAR_TOTAL_SEGMENTS, Tag.SAR_SEGMENT_SEQNUM)


class Esme:
    """One link to a carrier, from start to stop.

    `on_stored` is called after messages were stored, so that somebody decides them; `wake()` tells that
    something may be due to be sent.
    """

    def __init__(
        self,
        link: Link,
        database: DatabaseThreads,
        leases: Leases,
        keyring: Callable[[], Keyring],
        engine: str,
        on_stored: Callable[[], None],
    ) -> None:
        self.link = link
        self.state = "down"
        self._database = database
        self._keyring = keyring
        self._engine = engine
        self._on_stored = on_stored
        self._stopping = False
        self._leases = leases
        self._leased = asyncio.Event()
        self._due = asyncio.Event()
        self._freed = asyncio.Event()
        self._connections: list[Connection] = []
        self._arrived: list[_Arrived] = []
        self._storing: list[_Arrived] = []
        self._refused: set[int] = set()
        """Those of the batch under way (by id()) that were answered "try again" because it took too long."""
        self._arrival_event = asyncio.Event()
        self._store_broken = False
        self._lacks_key = False
        # Deliveries that wait for their answer, and those that were answered "try again" although they are
        # stored, or may be: they will come again.
        self._unanswered: dict[_Twin, list[tuple[Connection, ShortMessage]]] = {}
        self._doubtful: dict[_Twin, float] = {}
        self._settled: list[Settled] = []
        self._settled_event = asyncio.Event()
        self._unwritten = 0
        self._in_flight = 0
        self._quiet = 0.0
        self._quiet_until = 0.0
        self._allowance = 0.0
        self._allowance_at = time.monotonic()
        # Every task of the link is in this group: one that fails ends the link, and with it the engine, for
        # whoever started it to start anew. A link that is half alive would be worse.
        self._group = asyncio.TaskGroup()

    # --- life ---

    async def run(self) -> None:
        """Keep the link up until stop()."""
        kinds = [BindKind.TRANSCEIVER]
        if self.link.bind == "pair":
            kinds = [BindKind.RECEIVER] if "mo" in self.link.use else []
            kinds += [BindKind.TRANSMITTER] if "mt" in self.link.use else []
        async with self._group as tasks:
            tasks.create_task(self._keep_lease())
            for kind in kinds:
                tasks.create_task(self._keep_bound(kind))
            if "mt" in self.link.use:
                tasks.create_task(self._send_due())
                tasks.create_task(self._write_settled())
            tasks.create_task(self._store_arrivals())
            tasks.create_task(self._refuse_the_late())
            tasks.create_task(self._heartbeat())

    async def stop(self, grace: float = 5.0) -> None:
        """Send nothing new, finish the window and what waits for its commit, unbind."""
        self._stopping = True
        self.wake()
        end = time.monotonic() + grace
        while time.monotonic() < end and (self._in_flight or self._unanswered or self._unwritten):
            await asyncio.sleep(0.02)
        for connection in list(self._connections):
            connection.unbind()
        for connection in list(self._connections):
            try:
                await asyncio.wait_for(connection.ended.wait(), 2.0)
            except TimeoutError:
                connection.close()
            await self._touch(connection, ended=True)

    def wake(self) -> None:
        """Something may be due on this link."""
        self._due.set()

    async def _keep_lease(self) -> None:
        """Bind only while we hold a lease of the link: of several engines, as many as it may have binds.

        While the database is away a bind is kept: nobody else can take the lease then, and what arrives is
        answered "try again".
        """
        while not self._stopping:
            try:
                held = await self._leases.hold(self.link.name, self.link.binds)
            except psycopg.Error:
                await self._pause(HEARTBEAT)
                continue
            if held and not self._leased.is_set():
                if await self._take_over():
                    self._leased.set()
            elif not held and self._leased.is_set():
                self._leased.clear()
                log.warning("link %s: another engine holds it; unbinding", self.link.name)
                for connection in list(self._connections):
                    connection.unbind()
            elif not held:
                self._say_state("held by another engine")
            await self._pause(HEARTBEAT)

    async def _take_over(self) -> bool:
        """What engines before us had claimed and not settled is due again, with the identical text."""
        if self.link.binds > 1:
            return True  # another engine may be at it; the lease of its claims decides
        try:
            await self._database.run(queues.release_outbox, self.link.name)
        except psycopg.Error:
            return False
        return True

    async def _keep_bound(self, kind: BindKind) -> None:
        pause = BACKOFF[0]
        while not self._stopping:
            await self._leased.wait()
            connection = Connection(self.link, kind, self.handle)
            try:
                await asyncio.wait_for(
                    asyncio.get_running_loop().create_connection(
                        lambda connection=connection: connection,
                        self.link.host,
                        self.link.port,
                        ssl=self._tls(),
                    ),
                    10.0,
                )
            except (OSError, TimeoutError) as error:
                self._say_state(f"cannot connect: {error.__class__.__name__}")
            else:
                self._connections.append(connection)
                await connection.ended.wait()
                self._connections.remove(connection)
                if connection.store_session is not None:
                    await self._touch(connection, ended=True)
                if connection.bound_at is not None and time.monotonic() - connection.bound_at > 10:
                    pause = BACKOFF[0]
            if not self._stopping:
                await self._pause(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause = min(pause * 2, BACKOFF[1])

    async def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.2))

    def _tls(self) -> ssl.SSLContext | None:
        if not self.link.tls:
            return None
        wanted = self.link.tls if isinstance(self.link.tls, Tls) else Tls()
        context = ssl.create_default_context(cafile=str(wanted.ca_file) if wanted.ca_file else None)
        if not wanted.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _say_state(self, state: str) -> None:
        """Log a change of the link's state, once."""
        if state != self.state:
            self.state = state
            log.info("link %s: %s", self.link.name, state)

    # --- events of a connection ---

    def handle(self, connection: Connection, event: Event) -> None:
        match event:
            case Request(pdu):
                self._arrive(connection, pdu)
            case Response():
                self._in_flight -= 1
                self._freed.set()
                assert isinstance(event.context, Due)
                self._answered(event.context, event)
            case RequestLost(context, _, _):
                self._in_flight -= 1
                self._freed.set()
                assert isinstance(context, Due)
                self._settle(settle(context, Verdict.AGAIN, datetime.now(UTC)))
            case Bound(kind, _):
                connection.bound_at = time.monotonic()
                self._say_state(f"bound as {kind.name.lower()}")
                self._group.create_task(self._open(connection))
            case BindRefused(status):
                self._say_state(f"bind refused: {status_name(status)}")
                connection.close()
            case Closed(reason):
                if connection.bound_at is not None or reason != "peer gone":
                    self._say_state(f"closed: {reason}")
            case Ignored(reason, command_id):
                log.warning("link %s: %s: %s", self.link.name, command_name(command_id), reason)

    async def _open(self, connection: Connection) -> None:
        """Give the bind its row, without which nothing can be stored."""
        while not connection.ended.is_set():
            try:
                connection.store_session = await self._database.run(
                    queues.open_session, self.link.name, self._engine
                )
            except psycopg.Error:
                self._store_is_broken()
                await asyncio.sleep(0.5)
            else:
                self._store_is_back()
                self._freed.set()
                self._arrival_event.set()
                return

    # --- from phones ---

    def _arrive(self, connection: Connection, pdu: ShortMessage) -> None:
        twin = _twin(pdu)
        waiting = self._unanswered.get(twin)
        if waiting is not None:
            waiting.append((connection, pdu))  # the carrier asks again before we answered: the same message
        else:
            self._unanswered[twin] = [(connection, pdu)]
            self._arrived.append((connection, pdu, time.monotonic()))
            self._arrival_event.set()

    async def _store_arrivals(self) -> None:
        """Store what arrives, one batch after the other.

        The next batch waits until the one before has ended in the store, answered or not: so whoever is
        delivered again after a late commit finds its twin there.
        """
        while True:
            await self._arrival_event.wait()
            await asyncio.sleep(GATHER)
            ready = [item for item in self._arrived if item[0].store_session is not None]
            if not ready:
                self._arrival_event.clear()  # _open() sets it again
                continue
            batch = ready[:BATCH]
            taken = {id(item[1]) for item in batch}
            self._arrived = [item for item in self._arrived if id(item[1]) not in taken]
            if not self._arrived:
                self._arrival_event.clear()
            self._storing = batch
            try:
                for connection in {item[0] for item in batch}:
                    await self._store(connection, [item for item in batch if item[0] is connection])
            finally:
                self._storing = []
                self._refused.clear()
            self._on_stored()

    async def _refuse_the_late(self) -> None:
        """What is not stored in time is answered "try again", so that the carrier keeps it."""
        while True:
            await asyncio.sleep(0.1)
            late = time.monotonic() - PATIENCE
            for _, pdu, arrived in self._storing:
                if arrived < late and id(pdu) not in self._refused:
                    self._refused.add(id(pdu))
                    self._answer(pdu, Status.ESME_RSYSERR)
            waiting = [item for item in self._arrived if item[2] < late]
            if waiting:
                gone = {id(item[1]) for item in waiting}
                self._arrived = [item for item in self._arrived if id(item[1]) not in gone]
                for _, pdu, _ in waiting:
                    self._answer(pdu, Status.ESME_RSYSERR)

    async def _store(self, connection: Connection, items: list[_Arrived]) -> None:
        """Commit deliveries of one connection, then answer them."""
        try:
            await self._commit(connection, [pdu for _, pdu, _ in items])
        except Exception as error:
            if not is_at_fault_itself(error):
                self._store_failed(items, error)
            elif len(items) > 1:
                # Our own code fails on one of them: only that one is refused, for good.
                for item in items:
                    await self._store(connection, [item])
            else:
                log.exception("link %s: %r cannot be stored", self.link.name, items[0][1])
                self._answer(items[0][1], Status.ESME_RX_P_APPN)
        else:
            self._store_is_back()
            for _, pdu, _ in items:
                if id(pdu) in self._refused:
                    self._doubt(pdu)  # it is stored, yet was answered "try again" meanwhile
                else:
                    self._answer(pdu, Status.ESME_ROK)

    def _store_failed(self, items: list[_Arrived], error: Exception) -> None:
        self._store_is_broken()
        for _, pdu, _ in items:
            if id(pdu) not in self._refused:
                self._answer(pdu, Status.ESME_RSYSERR)
            if not (isinstance(error, psycopg.Error) and error.sqlstate):
                self._doubt(pdu)  # the server said nothing: it may have committed all the same

    async def _commit(self, connection: Connection, pdus: list[ShortMessage]) -> None:
        receipts = [self._receipt(pdu) for pdu in pdus if receipt.is_receipt(pdu)]
        if receipts:
            await self._database.run(queues.accept_receipts, self.link.name, receipts)
        arrivals = [self._arrival(connection, pdu) for pdu in pdus if not receipt.is_receipt(pdu)]
        if arrivals:
            stored_at = await self._database.run(
                queues.accept, self.link.name, connection.store_session, arrivals, self._join
            )
            connection.acknowledged.append((time.monotonic(), stored_at))

    def _doubt(self, pdu: ShortMessage) -> None:
        """This message may come again although it is stored."""
        self._doubtful[_twin(pdu)] = time.monotonic() + queues.REDELIVERY.total_seconds()

    def _answer(self, pdu: ShortMessage, status: int) -> None:
        """Answer a delivery, and whatever else the carrier asked of the same message meanwhile."""
        for connection, asked in self._unanswered.pop(_twin(pdu), ()):
            connection.session.respond(asked, status, now=time.monotonic())
            connection.flush_soon()

    def _arrival(self, connection: Connection, pdu: ShortMessage) -> Arrival:
        now = time.monotonic()
        suspect = Suspect.NO
        if self._doubtful.get(_twin(pdu), 0.0) > now:
            suspect = Suspect.ANY
        elif connection.bound_at is not None and now - connection.bound_at < SUSPICION:
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
        return text.decode(coding, payload, default=self.link.default_alphabet).text.replace("\0", "\ufffd")

    def _join(self, coding: int, parts: dict[int, bytes], total: int) -> str:
        """The text of a long message. A part that never came leaves a mark, so that no digits run together."""
        if len(parts) == total:
            return self._decode(coding, text.assemble(parts))
        return " … ".join(self._decode(coding, parts[number]) for number in sorted(parts)) + " …"

    def _receipt(self, pdu: ShortMessage) -> dict[str, object]:
        found = receipt.parse(self._decode(pdu.data_coding, pdu.payload), pdu.tlvs)
        ids = receipt.id_candidates(found.message_id) if found.message_id else []
        return {"message_ids": ids, "state": found.state, "error": found.error}

    # --- to phones ---

    async def _send_due(self) -> None:
        """Claim what is due, as much as fits the window, and submit it."""
        while not self._stopping:
            connection = self._sender()
            room = min(connection.session.free, self._allowed()) if connection else 0
            claimed: list[Due] = []
            if connection and room > 0 and self._unwritten < 4 * BATCH:
                try:
                    claimed = await self._database.run(
                        queues.claim_outbox, self.link.name, self._engine, min(room, BATCH), LEASE
                    )
                except psycopg.Error:
                    self._store_is_broken()
                    await self._pause(POLL)
            for due in claimed:
                self._submit(connection, due)
            if connection and claimed:
                connection.flush()
            if len(claimed) < room or room == 0:
                await self._wait_for_work(room)

    async def _wait_for_work(self, room: int) -> None:
        event = self._due if room else self._freed
        try:
            quiet = max(0.0, self._quiet_until - time.monotonic())
            async with asyncio.timeout(quiet or (POLL if room or not self.link.tps else 1 / self.link.tps)):
                await event.wait()
        except TimeoutError:
            pass  # the slow poll is the safety net
        event.clear()

    def _sender(self) -> Connection | None:
        return next((c for c in self._connections if c.session.free and c.store_session is not None), None)

    def _allowed(self) -> int:
        """How many messages the carrier allows now: none while it throttles; else a bucket that holds a tenth
        of a second of its TPS.
        """
        now = time.monotonic()
        if now < self._quiet_until:
            return 0
        if not self.link.tps:
            return BATCH
        room = max(1.0, self.link.tps / 10)
        self._allowance = min(room, self._allowance + (now - self._allowance_at) * self.link.tps)
        self._allowance_at = now
        return int(self._allowance)

    def _submit(self, connection: Connection | None, due: Due) -> None:
        if dead := drop_dead(due):
            self._settle(dead)
            return
        if connection is None or not connection.session.free:
            self._settle(postpone(due, 0.0))
            return
        try:
            message = compose(due, self._keyring())
            pdu = None if message is None else self._submit_sm(due, message)
            if pdu is not None:
                connection.session.request(pdu, time.monotonic(), due)
        except KeyringError:
            pdu = None
        except Exception:  # a row that can never be sent must not take the others with it
            log.exception("link %s: message %d cannot be sent", self.link.name, due.id)
            self._settle(settle(due, Verdict.NEVER, datetime.now(UTC)))
            return
        if pdu is None:
            if not self._lacks_key:
                log.error("link %s: this host lacks an issuing key; replies wait for it", self.link.name)
            self._lacks_key = True
            self._settle(postpone(due, KEY_RETRY))
            return
        self._lacks_key = False
        self._in_flight += 1
        if self.link.tps:
            self._allowance -= 1

    def _submit_sm(self, due: Due, message: str) -> ShortMessage:
        link = self.link
        coding, body = text.encode(message, default=link.default_alphabet)
        ton, npi, sender = link.sender_address(due.sender)
        return ShortMessage(
            Command.SUBMIT_SM,
            source_ton=ton,
            source_npi=npi,
            source=sender,
            destination_ton=link.phone_ton if due.destination_ton is None else due.destination_ton,
            destination_npi=link.phone_npi if due.destination_npi is None else due.destination_npi,
            destination=due.destination,
            registered_delivery=1 if link.receipts else 0,
            data_coding=coding,
            short_message=body,
        )

    def _heed(self, status: int) -> None:
        """Leave a carrier that throttles, or whose queue is full, alone for a while, longer each time."""
        now = time.monotonic()
        if status in (Status.ESME_RTHROTTLED, Status.ESME_RMSGQFUL):
            if now >= self._quiet_until:  # not for each message of the window that it refuses
                self._quiet = min(max(self._quiet * 2, QUIET[0]), QUIET[1])
                self._quiet_until = now + self._quiet
        elif status == Status.ESME_ROK:
            self._quiet = 0.0

    def _answered(self, due: Due, response: Response) -> None:
        pdu = response.pdu
        self._heed(pdu.status)
        result = Verdict.SENT if response.accepted else verdict(pdu.status or Status.ESME_RUNKNOWNERR)
        message_id = getattr(pdu, "message_id", None) if self.link.receipts else None
        self._settle(settle(due, result, datetime.now(UTC), status=pdu.status, message_id=message_id or None))

    def _settle(self, settled: Settled) -> None:
        self._settled.append(settled)
        self._unwritten += 1
        self._settled_event.set()

    async def _write_settled(self) -> None:
        """Write what became of messages, batch by batch. What cannot be written is sent again after its lease."""
        while True:
            await self._settled_event.wait()
            await asyncio.sleep(GATHER)
            self._settled_event.clear()
            batch, self._settled = self._settled, []
            try:
                await self._database.run(queues.settle_outbox, self._engine, batch)
            except psycopg.Error:
                self._store_is_broken()
                self._settled = batch + self._settled
                self._settled_event.set()
                await asyncio.sleep(0.5)
            else:
                self._unwritten -= len(batch)
                pauses = [settled.again_in for settled in batch if settled.state == "ready"]
                if pauses:
                    asyncio.get_running_loop().call_later(min(pauses), self.wake)

    # --- the store's health, the heartbeat ---

    def _store_is_broken(self) -> None:
        if not self._store_broken:
            self._store_broken = True
            log.error("link %s: the store is away; messages stay with the SMSC", self.link.name)

    def _store_is_back(self) -> None:
        if self._store_broken:
            self._store_broken = False
            log.info("link %s: the store is back", self.link.name)

    async def _heartbeat(self) -> None:
        swept = time.monotonic()
        while not self._stopping:
            await asyncio.sleep(HEARTBEAT)
            now = time.monotonic()
            self._doubtful = {twin: until for twin, until in self._doubtful.items() if until > now}
            for connection in list(self._connections):
                if connection.store_session is not None:
                    await self._touch(connection)
            if now - swept > 5:
                swept = now
                try:
                    await self._database.run(
                        queues.sweep_segments, self.link.name, self._join, SEGMENT_PATIENCE
                    )
                except psycopg.Error:
                    self._store_is_broken()

    async def _touch(self, connection: Connection, *, ended: bool = False) -> None:
        try:
            await self._database.run(
                queues.touch_session, connection.store_session, connection.confirmed(), ended
            )
        except psycopg.Error:
            self._store_is_broken()
