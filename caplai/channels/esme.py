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
from caplai.service.deliver import Verdict, compose, settle, without_key
from caplai.smpp import receipt, text
from caplai.smpp.pdu import BindKind, Command, ShortMessage, Status, command_name, status_name
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
from caplai.store.db import DatabaseThreads
from caplai.store.queues import Arrival, Due, Settled, Suspect

log = logging.getLogger(__name__)

GATHER = 0.004
"""Seconds that a delivery waits for its neighbours, so that they share one commit."""
BATCH = 500
PATIENCE = 3.5
"""Seconds until a delivery that could not be stored is answered "try again": a real SMSC waits about five."""
LATE = 4.0
"""An acknowledgement later than this may have met a carrier that had given up."""
SUSPICION = 65.0
"""Seconds after a bind in which a delivery may be one that an earlier connection did not acknowledge:
the 60 of service.md and a margin for the carrier's clock."""
LEASE = timedelta(seconds=90)
"""How long a claimed message is ours: longer than any window of unanswered submits stays open."""
SEGMENT_PATIENCE = timedelta(seconds=60)
"""How long the parts of a long message wait for each other."""
HEARTBEAT = 1.0
POLL = 1.0
BACKOFF = (0.5, 30.0)
"""Seconds between attempts to connect: the first pause and the longest; each is jittered."""

_Twin = tuple[str, str, bytes]
_Arrived = tuple[Connection, ShortMessage, float]


def _twin(pdu: ShortMessage) -> _Twin:
    """What makes two deliveries of one link the same message: addresses and body (service.md)."""
    return pdu.source, pdu.destination, pdu.payload


class Esme:
    """One link to a carrier, from start to stop.

    `on_stored` is called after messages were stored, so that somebody decides them; `wake()` tells that
    something may be due to be sent.
    """

    def __init__(
        self,
        link: Link,
        database: DatabaseThreads,
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
        self._due = asyncio.Event()
        self._freed = asyncio.Event()
        self._connections: list[Connection] = []
        self._arrived: list[_Arrived] = []
        self._arrival_event = asyncio.Event()
        self._store_broken = False
        # Deliveries that wait for their commit, and those acknowledged late or refused although they may
        # have been stored: each may come again.
        self._unanswered: dict[_Twin, list[tuple[Connection, ShortMessage]]] = {}
        self._doubtful: dict[_Twin, float] = {}
        self._settled: list[Settled] = []
        self._in_flight = 0
        self._allowance = 0.0
        self._allowance_at = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life ---

    async def run(self) -> None:
        """Keep the link up until stop()."""
        kinds = [BindKind.TRANSCEIVER]
        if self.link.bind == "pair":
            kinds = [BindKind.RECEIVER] if "mo" in self.link.use else []
            kinds += [BindKind.TRANSMITTER] if "mt" in self.link.use else []
        async with asyncio.TaskGroup() as tasks:
            for kind in kinds:
                tasks.create_task(self._keep_bound(kind))
            if "mt" in self.link.use:
                tasks.create_task(self._send_due())
            tasks.create_task(self._store_arrivals())
            tasks.create_task(self._heartbeat())

    async def stop(self, grace: float = 5.0) -> None:
        """Send nothing new, finish the window and what waits for its commit, unbind."""
        self._stopping = True
        self.wake()
        end = time.monotonic() + grace
        while time.monotonic() < end and (self._in_flight or self._unanswered or self._settled):
            await asyncio.sleep(0.02)
        for connection in list(self._connections):
            connection.unbind()
        for connection in list(self._connections):
            try:
                await asyncio.wait_for(connection.ended.wait(), 2.0)
            except TimeoutError:
                connection.close()
        await self._write_settled()

    def wake(self) -> None:
        """Something may be due on this link."""
        self._due.set()

    async def _keep_bound(self, kind: BindKind) -> None:
        pause = BACKOFF[0]
        while not self._stopping:
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
                self._spawn(self._open(connection))
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
            except psycopg.OperationalError:
                self._store_is_broken()
                await asyncio.sleep(0.5)
            else:
                self._store_is_back()
                self._freed.set()
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
        """Store what arrives, one batch after the other; what waited too long stays with the SMSC."""
        while True:
            await self._arrival_event.wait()
            await asyncio.sleep(GATHER)
            ready = [item for item in self._arrived if item[0].store_session is not None]
            now = time.monotonic()
            if ready:
                batch = ready[:BATCH]
                await self._store(batch)
            else:
                batch = [item for item in self._arrived if now - item[2] > PATIENCE]
                for _, pdu, _ in batch:
                    self._answer(pdu, Status.ESME_RSYSERR)
                await asyncio.sleep(0.05)
            gone = {id(item[1]) for item in batch}
            self._arrived = [item for item in self._arrived if id(item[1]) not in gone]
            if not self._arrived:
                self._arrival_event.clear()

    async def _store(self, batch: list[_Arrived]) -> None:
        """Commit a batch, then answer it."""
        try:
            async with asyncio.timeout(PATIENCE):
                for connection in {item[0] for item in batch}:
                    await self._store_from(connection, [item for item in batch if item[0] is connection])
        except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError):
            # Nothing is certain, not even that nothing was stored.
            self._store_is_broken()
            for _, pdu, _ in batch:
                self._answer(pdu, Status.ESME_RSYSERR, doubtful=True)
        except Exception:
            log.exception("link %s: a batch could not be stored", self.link.name)
            await self._store_one_by_one(batch)
        else:
            self._store_is_back()
        self._on_stored()

    async def _store_one_by_one(self, batch: list[_Arrived]) -> None:
        """A batch that our own code fails on: only the message at fault is refused, for good."""
        for connection, pdu, arrived in batch:
            if _twin(pdu) not in self._unanswered:
                continue
            try:
                await self._store_from(connection, [(connection, pdu, arrived)])
            except (psycopg.OperationalError, psycopg.InterfaceError):
                self._answer(pdu, Status.ESME_RSYSERR, doubtful=True)
            except Exception:
                log.exception("link %s: %r cannot be stored", self.link.name, pdu)
                self._answer(pdu, Status.ESME_RX_P_APPN)

    async def _store_from(self, connection: Connection, items: list[_Arrived]) -> None:
        receipts = [pdu for _, pdu, _ in items if receipt.is_receipt(pdu)]
        messages = [pdu for _, pdu, _ in items if not receipt.is_receipt(pdu)]
        if receipts:
            await self._database.run(
                queues.accept_receipts, self.link.name, [self._receipt(pdu) for pdu in receipts]
            )
        if messages:
            arrivals = [self._arrival(connection, pdu) for pdu in messages]
            stored_at = await self._database.run(
                queues.accept, self.link.name, connection.store_session, arrivals, self._join
            )
            connection.acknowledged.append((time.monotonic(), stored_at))
        for _, pdu, arrived in items:
            self._answer(pdu, Status.ESME_ROK, doubtful=time.monotonic() - arrived > LATE)

    def _answer(self, pdu: ShortMessage, status: int, *, doubtful: bool = False) -> None:
        """Answer a delivery, and whatever else the carrier asked of the same message meanwhile."""
        now = time.monotonic()
        if doubtful:
            self._doubtful[_twin(pdu)] = now + queues.REDELIVERY.total_seconds()
        for connection, asked in self._unanswered.pop(_twin(pdu), ()):
            connection.session.respond(asked, status, now=now)
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
        part, body = (
            text.parse_udh(pdu.payload) if pdu.esm_class & text.UDH_INDICATOR else (None, pdu.payload)
        )
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
            if connection and room > 0 and self._settles_keep_up():
                try:
                    claimed = await self._database.run(
                        queues.claim_outbox, self.link.name, self._engine, min(room, BATCH), LEASE
                    )
                except psycopg.OperationalError:
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
            async with asyncio.timeout(POLL if room or not self.link.tps else 1 / self.link.tps):
                await event.wait()
        except TimeoutError:
            pass  # the slow poll is the safety net
        event.clear()

    def _sender(self) -> Connection | None:
        return next((c for c in self._connections if c.session.free and c.store_session is not None), None)

    def _allowed(self) -> int:
        """How many messages the carrier's TPS allows now (a bucket of one second)."""
        if not self.link.tps:
            return BATCH
        now = time.monotonic()
        self._allowance = min(self.link.tps, self._allowance + (now - self._allowance_at) * self.link.tps)
        self._allowance_at = now
        return int(self._allowance)

    def _settles_keep_up(self) -> bool:
        return len(self._settled) < 4 * BATCH

    def _submit(self, connection: Connection | None, due: Due) -> None:
        now = datetime.now(UTC)
        if connection is None or not connection.session.free:
            self._settle(Settled(due.id, sent=False, again_in=0.0))
            return
        message = compose(due, self._keyring())
        if message is None:
            log.error(
                "link %s: this host lacks an issuing key; messages wait for one that has it", self.link.name
            )
            for settled in without_key([due]):
                self._settle(settled)
            return
        coding, body = text.encode(message, default=self.link.default_alphabet)
        link = self.link
        pdu = ShortMessage(
            Command.SUBMIT_SM,
            source_ton=link.sender_ton,
            source_npi=link.sender_npi,
            source=link.sender or due.sender,
            destination_ton=link.phone_ton if due.destination_ton is None else due.destination_ton,
            destination_npi=link.phone_npi if due.destination_npi is None else due.destination_npi,
            destination=due.destination,
            registered_delivery=1 if link.receipts else 0,
            data_coding=coding,
            short_message=body,
        )
        try:
            connection.session.request(pdu, time.monotonic(), due)
        except ValueError:  # smpp.pdu.EncodeError: it can never be written
            log.exception("link %s: message %d cannot be written as SMPP", self.link.name, due.id)
            self._settle(settle(due, Verdict.NEVER, now))
            return
        self._in_flight += 1
        if self.link.tps:
            self._allowance -= 1

    def _answered(self, due: Due, response: Response) -> None:
        pdu = response.pdu
        result = Verdict.SENT if response.accepted else verdict(pdu.status or Status.ESME_RUNKNOWNERR)
        message_id = getattr(pdu, "message_id", None) if self.link.receipts else None
        self._settle(settle(due, result, datetime.now(UTC), status=pdu.status, message_id=message_id or None))

    def _settle(self, settled: Settled) -> None:
        self._settled.append(settled)
        if len(self._settled) == 1:
            self._spawn(self._write_settled_soon())

    async def _write_settled_soon(self) -> None:
        await asyncio.sleep(GATHER)
        await self._write_settled()

    async def _write_settled(self) -> None:
        while self._settled:
            batch, self._settled = self._settled, []
            try:
                await self._database.run(queues.settle_outbox, self._engine, batch)
            except psycopg.OperationalError:
                self._store_is_broken()
                self._settled = batch + self._settled
                if self._stopping:
                    return  # the lease runs out, and they are sent once more
                await asyncio.sleep(0.5)
            else:
                if any(settled.again_in is not None for settled in batch):
                    asyncio.get_running_loop().call_later(2.0, self.wake)

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

    def _spawn(self, work) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
