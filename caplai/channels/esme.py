"""The SMS door: one `Esme` keeps one configured link bound.

smpp/session.py says what the bytes mean, connection.py carries them, inbound.py stores what arrives and
outbound.py sends what is due; this file holds the link's lease, its connections and its tasks together.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable

import psycopg

from caplai.channels.connection import Connection
from caplai.channels.inbound import Inbound
from caplai.channels.links import Link
from caplai.channels.outbound import Outbound
from caplai.domain.issuing import Keyring
from caplai.smpp.pdu import BindKind, command_name, status_name
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
from caplai.store.leases import TTL, Leases
from caplai.watch import metrics

log = logging.getLogger(__name__)

HEARTBEAT = 1.0
TIDY = 5.0
TELL = 60.0
"""Seconds between lines of the log about PDUs of one sort that are ignored."""
LET_GO = 30.0
"""Seconds without the database after which a bind is given up: another engine may hold the lease by then, and
few carriers would let it bind beside us."""
HUNG = 1.5
"""Seconds without a turn of our loop after which connections are made anew. With inbound.PATIENCE they are the five
that a carrier waits: what came meanwhile it may have delivered to another engine since."""
STORE_BACK = 5.0
"""Seconds without a failure after which a heartbeat tells that the store is back."""
LAST_RESULTS = 2.0
"""Seconds for writing, once unbound, what became of the last messages."""
STANDING_BY = "held by another engine"
UNFIT = 3.0
"""Seconds for which this host may lack a key before it leaves its links to others: not while a key is just changing."""
BACKOFF = (0.5, 30.0)
"""Seconds between attempts to connect: the first pause and the longest; each is jittered."""


class Esme:
    """One link to a carrier, from start to stop.

    `on_stored` is called after messages were stored, so that somebody decides them. `is_fit`: whether this host has
    all keys; without them it would keep the link's replies from people, so another engine is to have the link.
    """

    def __init__(
        self,
        link: Link,
        database: DatabaseThreads,
        leases: Leases,
        keyring: Callable[[], Keyring],
        engine: str,
        on_stored: Callable[[], None],
        is_fit: Callable[[], bool] = lambda: True,
    ) -> None:
        self.link = link
        self.state = "down"
        metrics.for_link(link.name)
        self._database = database
        self._engine = engine
        self._stopping = False
        self._leases = leases
        self._is_fit = is_fit
        self._leased = asyncio.Event()
        self._connections: list[Connection] = []
        self._store_well = True
        self._ignored: Counter[str] = Counter()
        self._awake_at = time.monotonic()
        self._store_failed_at = 0.0
        self._inbound = Inbound(link, database, on_stored, self._store_is)
        self._outbound = Outbound(link, database, keyring, engine, self._sender, self._store_is)
        # Every task of the link is in this group: one that fails ends the link, and with it the engine, for
        # whoever started it to start anew. A link that is half alive would be worse.
        self._group = asyncio.TaskGroup()

    # --- life ---

    async def run(self) -> None:
        """Keep the link up until stop()."""
        async with self._group as tasks:
            tasks.create_task(self._keep_lease())
            for kind in self.link.bind_kinds:
                tasks.create_task(self._keep_bound(kind))
            if "mt" in self.link.use:
                tasks.create_task(self._outbound.send_due())
                tasks.create_task(self._outbound.write_settled())
            tasks.create_task(self._inbound.store_arrivals())
            tasks.create_task(self._inbound.refuse_the_late())
            tasks.create_task(self._heartbeat())
            tasks.create_task(self._stay_awake())

    async def stop(self, grace: float = 5.0) -> None:
        """Send nothing new, finish the window and what waits for its commit, unbind."""
        self._stopping = True
        self._outbound.stop()
        await self._finish(grace, lambda: self._inbound.busy or self._outbound.busy)
        for connection in list(self._connections):
            connection.unbind()
        for connection in list(self._connections):
            try:
                await asyncio.wait_for(connection.ended.wait(), 2.0)
            except TimeoutError:
                connection.close()
            await self._touch(connection, ended=True)
        # The answers that an SMSC still gives when it is asked to unbind, and what will never be answered now.
        await self._finish(LAST_RESULTS, lambda: self._outbound.busy)

    async def _finish(self, seconds: float, busy: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and busy():
            await asyncio.sleep(0.02)

    def wake(self) -> None:
        """Something may be due on this link."""
        self._outbound.wake()

    @property
    def outbound(self) -> Outbound:
        """The way of what goes to phones."""
        return self._outbound

    @property
    def binds(self) -> int:
        """How many connections are bound now."""
        return sum(c.bound_at is not None and not c.ended.is_set() for c in self._connections)

    @property
    def stands_by(self) -> bool:
        """Whether another engine holds the link."""
        return not self._leased.is_set() and self.state == STANDING_BY

    @property
    def store_well(self) -> bool:
        """Whether the store answered when it was last asked."""
        return self._store_well

    @property
    def in_window(self) -> int:
        """Submits that wait for their answer."""
        return sum(connection.session.pending for connection in self._connections)

    async def _keep_lease(self) -> None:
        """Bind only while we hold a lease of the link: of several engines, as many as it may have binds.

        While the database is away a bind is kept for a while, and what arrives is answered "try again"; but
        nothing is sent on it from the moment that somebody else may hold the lease (`_sender`).
        """
        fit_at = time.monotonic() - UNFIT  # at the start nothing is changing
        while not self._stopping:
            if self._is_fit():
                fit_at = time.monotonic()
            elif not self._leased.is_set() or time.monotonic() - fit_at > UNFIT:
                await self._leave_to_others()
                await self._pause(HEARTBEAT)
                continue
            try:
                held = await self._leases.hold(self.link.name, self.link.binds)
            except psycopg.Error:
                if self._leased.is_set() and self._leases.age(self.link.name) > LET_GO:
                    self._let_go("the database is away for long")
                await self._pause(HEARTBEAT)
                continue
            if held and not self._leased.is_set():
                if await self._take_over():
                    self._leased.set()
            elif not held and self._leased.is_set():
                self._let_go("another engine holds it")
            elif not held:
                self._say_state(STANDING_BY)
            await self._pause(HEARTBEAT)

    async def _leave_to_others(self) -> None:
        """Unbind, and then give the lease up: few carriers let a second engine bind beside the first."""
        if not self._leased.is_set():
            return
        self._let_go("this host lacks keys that are in use")
        for connection in list(self._connections):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(connection.ended.wait(), 2.0)
        with contextlib.suppress(psycopg.Error):
            await self._leases.release(self.link.name)

    def _let_go(self, why: str) -> None:
        self._leased.clear()
        log.warning("link %s: %s; unbinding", self.link.name, why)
        for connection in list(self._connections):
            connection.unbind()

    async def _take_over(self) -> bool:
        """What engines before us had claimed and not settled is due again, with the identical text."""
        if self.link.binds > 1:
            return True  # another engine may be at it; the lease of its claims decides
        try:
            await self._database.run(queues.release_outbox, self.link.name)
        except psycopg.Error:
            return False
        self._outbound.released()
        return True

    async def _keep_bound(self, kind: BindKind) -> None:
        pause = BACKOFF[0]
        while not self._stopping:
            await self._leased.wait()
            if self._leases.age(self.link.name) > TTL:  # another engine may be about to bind
                await self._pause(HEARTBEAT)
                continue
            connection = Connection(self.link, kind, self.handle, self._outbound.room)
            metrics.connects.labels(self.link.name).inc()
            try:
                await asyncio.wait_for(
                    asyncio.get_running_loop().create_connection(
                        lambda connection=connection: connection,
                        self.link.host,
                        self.link.port,
                        ssl=self.link.tls_context(),
                    ),
                    10.0,
                )
            except (OSError, UnicodeError) as error:  # the latter: no name that DNS could know
                self._say_state(f"cannot connect: {error.__class__.__name__}")
            else:
                self._connections.append(connection)
                if self._stopping or not self._leased.is_set():  # since we were connecting
                    connection.close()
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

    def _say_state(self, state: str) -> None:
        """Log a change of the link's state, once."""
        if state != self.state:
            self.state = state
            log.info("link %s: %s", self.link.name, state)

    # --- events of a connection ---

    def handle(self, connection: Connection, event: Event) -> None:
        match event:
            case Request(pdu):
                self._notice_a_hang()
                if not connection.aborted:
                    self._inbound.arrive(connection, pdu)
            case Response():
                self._outbound.answered(event)
            case RequestLost():
                self._outbound.lost(event)
            case Bound(kind):
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
                metrics.ignored.labels(
                    self.link.name, metrics.command(command_name(command_id)), reason
                ).inc()
                self._ignored[reason] += 1
                if self._ignored[reason] == 1:
                    log.warning("link %s: %s: %s", self.link.name, command_name(command_id), reason)

    async def _open(self, connection: Connection) -> None:
        """Give the bind its row, without which nothing can be stored."""
        while not connection.ended.is_set():
            try:
                connection.store_session = await self._database.run(
                    queues.open_session, self.link.name, self._engine
                )
            except psycopg.Error:
                self._store_is(False)
                await asyncio.sleep(0.5)
            else:
                self._store_is(True)
                self._outbound.room()
                self._inbound.wake()
                return

    def _sender(self) -> Connection | None:
        """The connection to submit on, one with room in its window if there is any. None while another engine may hold
        the link: it sends what is due.
        """
        if self._leases.age(self.link.name) > TTL:
            return None
        usable = [
            c
            for c in self._connections
            if c.session.bound
            and c.kind is not BindKind.RECEIVER
            and c.store_session is not None
            and not c.choked
        ]
        return next((c for c in usable if c.session.free), usable[0] if usable else None)

    # --- the store's health, the heartbeat ---

    def _store_is(self, well: bool) -> None:
        """Log that the store is away, and that it is back, each once."""
        if well and not self._store_well:
            log.info("link %s: the store is back", self.link.name)
        elif not well and self._store_well:
            log.error("link %s: the store is away; messages stay with the SMSC", self.link.name)
        self._store_well = well
        if not well:
            self._store_failed_at = time.monotonic()

    async def _stay_awake(self) -> None:
        self._awake_at = time.monotonic()
        while not self._stopping:
            await asyncio.sleep(HUNG / 5)
            self._notice_a_hang()

    def _notice_a_hang(self) -> None:
        """After a hang, what waits in our buffers is left to the carrier: it has no answer, so it comes again."""
        now = time.monotonic()
        gap, self._awake_at = now - self._awake_at, now
        if gap > HUNG:
            log.warning("link %s: we hung for %.1f s; connecting anew", self.link.name, gap)
            for connection in self._connections:
                connection.abort()

    async def _heartbeat(self) -> None:
        tidied = told = time.monotonic()
        while not self._stopping:
            await asyncio.sleep(HEARTBEAT)
            for connection in list(self._connections):
                if connection.store_session is not None:
                    connection.ask_whether_read()
                    await self._touch(connection)
            if time.monotonic() - tidied > TIDY:
                tidied = time.monotonic()
                await self._inbound.tidy()
            if time.monotonic() - told > TELL:
                told = time.monotonic()
                self._tell_ignored()

    def _tell_ignored(self) -> None:
        """A carrier that goes on with what we ignore must not fill the log."""
        for reason, count in self._ignored.items():
            if count > 1:
                log.warning("link %s: %s: %d times more", self.link.name, reason, count - 1)
        self._ignored.clear()

    async def _touch(self, connection: Connection, *, ended: bool = False) -> None:
        try:
            await self._database.run(
                queues.touch_session, connection.store_session, connection.confirmed(), ended
            )
        except psycopg.Error:
            self._store_is(False)
        else:
            # A heartbeat alone is no proof while messages fail, but where none come it is all that tells.
            if not self._store_well and time.monotonic() - self._store_failed_at > STORE_BACK:
                self._store_is(True)
