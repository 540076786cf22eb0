"""What `caplai/store/queues.py` promises, without a database: its functions on lists of rows, and a server that is
slow, goes away, and loses answers.

It stands in for the store only where time is virtual. `test_store_model.py` holds it to the real PostgreSQL.
"""

import asyncio
import contextvars
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from caplai.channels import inbound
from caplai.store.queues import REDELIVERY, Accepted, Arrival, Settled, Suspect
from tests.simulation import clock


@dataclass(slots=True)
class Inbox:
    id: int
    received_at: datetime
    link: str
    session: int | None
    source: str
    destination: str
    text: str
    outcome: str | None = None


@dataclass(slots=True)
class Segment:
    received_at: datetime
    link: str
    session: int | None
    arrival: Arrival
    joined_at: datetime | None = None


@dataclass(slots=True)
class Outbox:
    id: int
    created_at: datetime
    inbox_id: int | None
    link: str
    destination: str
    due_at: datetime
    wording: str = "x"
    account: str | None = None
    case_id: UUID | None = None
    state: str = "ready"
    attempts: int = 0
    claimed_by: str | None = None
    status: int | None = None
    message_id: str | None = None
    settled_at: datetime | None = None


@dataclass(slots=True)
class Session:
    id: int
    link: str
    engine: str
    confirmed_at: datetime | None = None


@dataclass
class QueueModel:
    """The tables and the functions of queues.py. `now` is the time at which the transaction began."""

    inbox: list[Inbox] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    outbox: dict[int, Outbox] = field(default_factory=dict)
    sessions: dict[int, Session] = field(default_factory=dict)

    # --- inbox ---

    def accept(
        self,
        now: datetime,
        link: str,
        session: int | None,
        arrivals: Sequence[Arrival],
        join,
        waited: float = 0.0,
    ) -> Accepted:
        known, arrived = 0, now - timedelta(seconds=waited)
        whole = [arrival for arrival in arrivals if arrival.text is not None]
        parts = [arrival for arrival in arrivals if arrival.text is None]
        stored = list(self.segments)
        for part in parts:
            same = [s for s in stored if _part_key(s) == _part_key_of(link, part)]
            twin = any(
                s.arrival.payload == part.payload and self._is_twin(now, link, session, part, s, arrived)
                for s in same
            )
            waiting = [s for s in self.segments if _part_key(s) == _part_key_of(link, part)]
            if twin or any(s.joined_at is None for s in waiting):
                known += 1
            else:
                self.segments.append(Segment(now, link, session, part))
        if parts:
            sources = {part.source for part in parts}
            whole += self._joined(now, join, lambda s: s.link == link and s.arrival.source in sources)
        ids = self._insert(now, link, session, whole, arrived)
        return Accepted(now, ids, known + len(whole) - len(ids))

    def sweep_segments(self, now: datetime, link: str, join, patience: timedelta) -> list[int]:
        self.segments = [s for s in self.segments if not s.joined_at or s.joined_at >= now - _KEPT]
        return self._insert(now, link, None, self._joined(now, join, lambda s: s.link == link, patience), now)

    def _insert(
        self, now: datetime, link: str, session: int | None, arrivals: Sequence[Arrival], arrived: datetime
    ) -> list[int]:
        stored = list(self.inbox)
        ids = []
        for a in arrivals:
            if not any(
                row.text == a.text
                and (row.source, row.destination) == (a.source, a.destination)
                and self._is_twin(now, link, session, a, row, arrived)
                for row in stored
            ):
                id_ = len(self.inbox) + 1
                assert a.text is not None
                self.inbox.append(Inbox(id_, now, link, session, a.source, a.destination, a.text))
                ids.append(id_)
        return ids

    def _is_twin(
        self,
        now: datetime,
        link: str,
        session: int | None,
        a: Arrival,
        stored: Inbox | Segment,
        arrived: datetime,
    ) -> bool:
        if a.suspect == Suspect.NO or stored.link != link or stored.received_at <= now - REDELIVERY:
            return False
        if a.suspect == Suspect.ANY:
            return True
        row = self.sessions.get(stored.session) if stored.session is not None else None
        confirmed = row.confirmed_at if row else None
        return stored.session != session and (
            confirmed is None or stored.received_at > min(confirmed, arrived)
        )

    def _joined(self, now: datetime, join, which, patience=timedelta(days=3650)) -> list[Arrival]:
        sets: dict[tuple, list[Segment]] = {}
        for s in self.segments:
            if s.joined_at is None and which(s):
                sets.setdefault(_part_key(s)[:-1], []).append(s)
        joined = []
        for (_, source, destination, _, total), found in sets.items():
            if len(found) == total or min(s.received_at for s in found) < now - patience:
                for s in found:
                    s.joined_at = now
                first = min((s.arrival for s in found), key=lambda a: a.number)
                text = join(first.coding, {s.arrival.number: s.arrival.payload for s in found}, total)
                joined.append(
                    Arrival(source, first.source_ton, first.source_npi, destination, first.coding, text)
                )
        return joined

    # --- outbox ---

    def put(self, now: datetime, link: str, destination: str, **values) -> Outbox:
        """What the re-issue writes."""
        row = Outbox(
            len(self.outbox) + 1, now, values.pop("inbox_id", None), link, destination, now, **values
        )
        self.outbox[row.id] = row
        return row

    def claim_outbox(
        self, now: datetime, link: str, engine: str, count: int, lease: timedelta
    ) -> list[Outbox]:
        due = [
            row
            for row in self.outbox.values()
            if row.link == link and row.state in ("ready", "claimed") and row.due_at <= now
        ]
        taken = sorted(due, key=lambda row: (row.due_at, row.id))[:count]
        for row in taken:
            row.state, row.claimed_by, row.due_at = "claimed", engine, now + lease
            row.attempts += 1
        return sorted(taken, key=lambda row: row.id)

    def settle_outbox(self, now: datetime, engine: str, settled: Sequence[Settled]) -> int:
        written = 0
        for s in settled:
            row = self.outbox[s.id]
            if row.state != "claimed" or row.claimed_by != engine:
                continue
            written += 1
            row.state, row.claimed_by, row.message_id = s.state, None, s.message_id
            row.settled_at = None if s.state == "ready" else now
            if s.state == "ready":
                row.due_at = now + timedelta(seconds=s.again_in)
            row.attempts -= 0 if s.tried else 1
            row.status = row.status if s.status is None else s.status
        return written

    def release_outbox(self, now: datetime, link: str) -> None:
        for row in self.outbox.values():
            if row.link == link and row.state == "claimed":
                row.due_at = now

    def release_unheld(self, now: datetime, link: str, engine: str, held: Sequence[int]) -> None:
        for row in self.outbox.values():
            if (
                row.link == link
                and row.state == "claimed"
                and row.claimed_by == engine
                and row.id not in held
            ):
                row.due_at = min(row.due_at, now)

    # --- sessions of the links ---

    def open_session(self, now: datetime, link: str, engine: str) -> int:
        id_ = len(self.sessions) + 1
        self.sessions[id_] = Session(id_, link, engine)
        return id_

    def touch_session(
        self, now: datetime, session: int, confirmed_at: datetime | None, ended: bool = False
    ) -> None:
        if confirmed_at is not None:
            bind = self.sessions[session]
            bind.confirmed_at = max(confirmed_at, bind.confirmed_at or confirmed_at)


_KEPT = timedelta(minutes=10)


def _part_key_of(link: str, a: Arrival) -> tuple:
    return link, a.source, a.destination, a.reference, a.total, a.number


def _part_key(s: Segment) -> tuple:
    return _part_key_of(s.link, s.arrival)


# --- the server and its clients ---------------------------------------------------------------------

STATEMENT_TIMEOUT = 3.0
TRAVEL = 0.0003
_BREAKS = ("before", "under way", "after", "late")
"""When a connection breaks: before the commit was sent, while it is under way, before its answer, or not quite."""


class Server:
    """A database server with one QueueModel. Away, slow, and losing connections as its fields say."""

    def __init__(self, draw: random.Random, model: QueueModel) -> None:
        self.model = model
        self.draw = draw
        self.context = contextvars.copy_context()
        self.away = False
        self.starts = 0
        self.slow = 0.002
        """Seconds that the work of a transaction takes, at most."""
        self.loses = 0.0
        """The share of calls whose connection breaks."""
        self.leases: dict[tuple[str, int], str] = {}
        """Link and slot → the engine whose connection holds its lock."""
        self.bugs: list[str] = []
        """What the model itself failed with."""
        self.on_commit: Callable[[str, str, Any, Any], None] = lambda engine, name, args, result: None
        self._accepting: list[tuple[object, bool]] = []
        """Who holds or waits for the lock of accept, and whether alone; in the order of asking."""

    def restart(self) -> None:
        """Whatever is under way ends without a commit, and every lease is free."""
        self.starts += 1
        self.leases.clear()

    async def lock(self, who: object, exclusive: bool) -> None:
        """The advisory lock of `accept`; whoever was earlier goes first."""
        mine = (who, exclusive)
        self._accepting.append(mine)
        end = asyncio.get_running_loop().time() + STATEMENT_TIMEOUT
        while True:
            before = self._accepting[: self._accepting.index(mine)]
            if not before or not (exclusive or any(alone for _, alone in before)):
                return
            if asyncio.get_running_loop().time() > end:
                raise psycopg.errors.QueryCanceled
            await asyncio.sleep(0.01)

    def unlock(self, who: object) -> None:
        self._accepting = [held for held in self._accepting if held[0] is not who]


class Database:
    """As `caplai.store.db.DatabaseThreads`, for one engine."""

    def __init__(self, server: Server, engine: str, answer: Callable[[str, Any], Any]) -> None:
        self.server, self.engine, self._answer = server, engine, answer
        self.dead = False
        self._context = contextvars.copy_context()
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self, function: Callable[..., Any] | str, *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        reply = loop.create_future()
        call = loop.create_task(self._serve(function, args, reply))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await reply

    def die(self) -> None:
        """The engine is gone. What it had begun is undone, or was on its way to being committed."""
        self.dead = True

    async def _serve(self, function: Callable[..., Any] | str, args: tuple, reply: asyncio.Future) -> None:
        try:
            result = await self._transaction(function, args, reply)
        except Exception as error:
            if not isinstance(error, psycopg.Error | TimeoutError):
                self.server.bugs.append(f"{function}: {error!r}")
            if not reply.done():
                reply.set_exception(error)
        else:
            if not reply.done():
                reply.set_result(result)

    async def _transaction(
        self, function: Callable[..., Any] | str, args: tuple, reply: asyncio.Future
    ) -> Any:
        server, draw = self.server, self.server.draw
        breaks = draw.choice(_BREAKS) if draw.random() < server.loses else None
        work, late, commits = draw.random() * server.slow, draw.random() * 4.0, draw.random() < 0.5
        await asyncio.sleep(TRAVEL)
        if server.away:
            await asyncio.sleep(late / 2)
            raise psycopg.OperationalError("the connection failed")
        if breaks == "before":
            raise psycopg.OperationalError("the connection is lost")
        name, args = _called(function, args)
        answer = await asyncio.get_running_loop().create_task(
            self._at_server(name, args, reply, breaks == "under way", work, late, commits),
            context=server.context,
        )
        if breaks == "after":
            raise psycopg.OperationalError("the connection is lost")
        # The answer may take its time on the way: a packet that got lost is sent again.
        await asyncio.sleep(late if breaks == "late" else TRAVEL)
        return answer

    async def _at_server(
        self,
        name: str,
        args: tuple,
        reply: asyncio.Future,
        breaks: bool,
        work: float,
        late: float,
        commits: bool,
    ) -> Any:
        """A transaction, where the engine's hanging matters only while the server waits for its next statement."""
        server = self.server
        starts, began, who = server.starts, clock.now(), object()
        try:
            if name == "accept":
                await server.lock(who, any(a.suspect for a in args[2]))
                await self._next_statement()
            if breaks:  # the server does not know, and goes on (it keeps its row locks: so at once)
                if not reply.done():
                    reply.set_exception(psycopg.OperationalError("the connection is lost"))
                work = work + late if name == "accept" else 0.0
            elif work > 2 * STATEMENT_TIMEOUT:  # the transactions have two statements at least
                await asyncio.sleep(STATEMENT_TIMEOUT)
                raise psycopg.errors.QueryCanceled
            await asyncio.sleep(work)
            if server.starts != starts or (self.dead and not commits):
                raise psycopg.OperationalError("the server closed the connection")
            result = getattr(server.model, name)(began if name == "accept" else clock.now(), *args)
            answer = self._answer(name, result)
            server.on_commit(self.engine, name, args, answer)
        finally:
            server.unlock(who)
        return answer

    async def _next_statement(self) -> None:
        """Wait for the engine, but not for long if it hangs (idle_in_transaction_session_timeout)."""
        statement = asyncio.get_running_loop().create_task(asyncio.sleep(TRAVEL), context=self._context)
        await asyncio.wait([statement], timeout=STATEMENT_TIMEOUT)
        if not statement.done():
            raise psycopg.errors.IdleInTransactionSessionTimeout


def _called(function: Callable[..., Any] | str, args: tuple) -> tuple[str, tuple]:
    """The function of queues.py that is called in the end, by name, and with what."""
    if function is inbound._in_time:
        arrived, inner, *rest = args
        return inbound._in_time(None, arrived, lambda _, *a: (inner.__name__, a), *rest)  # type: ignore[arg-type]
    return (function if isinstance(function, str) else function.__name__), args


class Leases:
    """As `caplai.store.leases.Leases`."""

    def __init__(self, server: Server, engine: str) -> None:
        self.server, self.engine = server, engine
        self._starts = server.starts
        self._connected = True
        self.certain_at = float("-inf")

    def cut(self) -> None:
        """The connection that holds the leases is lost: the server frees them, we learn of it when we ask."""
        self._connected = False
        for slot in [slot for slot, holder in self.server.leases.items() if holder == self.engine]:
            del self.server.leases[slot]

    def age(self, link: str) -> float:
        return asyncio.get_running_loop().time() - self.certain_at

    async def hold(self, link: str, binds: int) -> bool:
        asked = asyncio.get_running_loop().time()
        await asyncio.sleep(TRAVEL)
        if self.server.away or not self._connected or self._starts != self.server.starts:
            self._connected, self._starts = True, self.server.starts
            await asyncio.sleep(self.server.draw.random())
            raise psycopg.OperationalError("the connection is lost")
        slots = [(link, slot) for slot in range(binds)]
        held = any(self.server.leases.get(slot) == self.engine for slot in slots)
        if not held and (free := [slot for slot in slots if slot not in self.server.leases]):
            self.server.leases[free[0]] = self.engine
            held = True
        if held:
            self.certain_at = asked
        return held
