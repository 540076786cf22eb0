"""One run: two engines, a carrier, a store and a network between them, trouble for a while, then peace.

`run(seed)` says what was broken, which must be nothing:

- nothing is acknowledged before it is stored; every text is stored once and has one outcome;
- every reply is sent until the carrier took it, always with the identical text, to the right phone; one that the
  carrier refused for good is not sent again, nor is one after an engine has been told that it was taken;
- nobody submits what is not claimed, and each claim is submitted once at most; windows and attempts keep their
  bounds;
- no error is met that the code did not expect; and after the trouble the link is bound, by one engine, again.
"""

import asyncio
import contextvars
import functools
import hashlib
import logging
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from caplai.channels.esme import HUNG, LET_GO, Esme
from caplai.channels.links import Link
from caplai.channels.outbound import LEASE
from caplai.domain.issuing import DIGITS, VERSION, Inputs, Keyring, derive
from caplai.service.deliver import MAX_ATTEMPTS
from caplai.smpp import text
from caplai.smpp.session import Response
from caplai.store.leases import TTL
from caplai.store.queues import REDELIVERY, Due
from tests.simulation import clock
from tests.simulation.carrier import FOR_GOOD, Carrier, Connection, Submit, Text
from tests.simulation.network import Network
from tests.simulation.store import Database, Leases, Outbox, QueueModel, Server

TROUBLE = 15.0
"""Seconds of trouble, as a rule: what is delivered again within 60 s of being stored is recognised."""
PEACE = 400.0
"""Seconds within which all must be well again; most runs need a few."""
_KEYS = Keyring({"k1": b"simulated" * 4}, "k1")


@dataclass
class Result:
    seed: int
    broken: list[str]
    counts: Counter[str]
    digest: str
    """Of all that happened: equal for equal seeds."""
    trace: list[str] = field(repr=False, default_factory=list)


class Engine:
    """The SMS door of one engine process, with a decider that opens a case for each sender."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name, self.alive, self.stopping = world, name, True, False
        self.database = Database(world.server, name, self._answer)
        self.leases = Leases(world.server, name)
        self.work = asyncio.Event()
        link = world.link.model_copy(update={"host": name})  # by which the network knows who connects
        self.esme = Esme(link, self.database, self.leases, lambda: _KEYS, name, self.work.set)  # type: ignore[arg-type]
        self.submits: deque[float] = deque()
        """When it submitted, within the last second."""
        create = asyncio.get_running_loop().create_task
        self.tasks = [create(self.esme.run()), create(self.decide())]
        for task in self.tasks:
            task.add_done_callback(self._ended)

    def _answer(self, name: str, result):
        if name == "claim_outbox":
            return [_due(row) for row in result]
        return (result[0], [_due(row) for row in result[1]]) if name == "decide" else result

    def _ended(self, task: asyncio.Task) -> None:
        if self.alive and not task.cancelled() and (error := task.exception()) is not None:
            self.world.break_(f"{self.name} failed: {error!r}")

    async def decide(self) -> None:
        """As caplai/engine.py does it: what the link has room for is handed over, the rest is claimed."""
        while True:
            self.work.clear()
            outbound = self.esme.outbound
            kept = outbound.reserve(500)
            dues: list[Due] = []
            decided = 0
            try:
                decided, dues = await self.database.run("decide", 500, self.name, kept.room)
            except Exception:
                outbound.doubt()
            finally:
                outbound.take(dues, kept)
            if decided > len(dues):
                self.esme.wake()
            if decided:
                continue
            try:
                async with asyncio.timeout(1.0):
                    await self.work.wait()
            except TimeoutError:
                pass

    def die(self, *, vanish: bool) -> None:
        """As by kill -9; or with its whole host, so that nobody is told."""
        self.alive = False
        self.database.die()
        for task in self.tasks:
            task.cancel()
        for connection in list(self.esme._connections):
            if connection._timer:
                connection._timer.cancel()
        draw, loop = self.world.draw, asyncio.get_running_loop()
        for wire in self.world.network.wires:
            if wire.owner is self:
                wire.client.closing = True
                wire.cut(notice=(0.0, None if vanish else draw.random()))
        loop.call_later(draw.random() * 10 if vanish else 0.001, self.leases.cut)

    async def stop(self) -> None:
        """As by SIGTERM."""
        self.stopping = True
        await self.esme.stop()
        if self.alive:
            self.alive = False
            self.database.die()
            self.leases.cut()
            for task in self.tasks:
                task.cancel()


def _due(row: Outbox) -> Due:
    """The row as it is claimed, with its case's inputs."""
    return Due(
        id=row.id,
        inbox_id=row.inbox_id,
        kind="issued",
        link=row.link,
        sender="8079",
        destination=row.destination,
        destination_ton=None,
        destination_npi=None,
        attempts=row.attempts,
        created_at=row.created_at,
        wording=_wording(row.destination),
        until=None,
        account=row.account,
        case_id=row.case_id,
        key="k1",
        version=VERSION,
        length=6,
        alphabet=DIGITS,
        dead=False,
        age=(clock.now() - row.created_at).total_seconds(),
    )


def _wording(source: str) -> str:
    """Every third person's reply has three parts."""
    return "{code}/{password}" + (" dai dong" * 40 if int(source) % 3 == 0 else "")


def _case(source: str) -> tuple[str, UUID]:
    return source[-10:], UUID(int=int(source))


@functools.cache
def parts(source: str, row: int) -> list[bytes]:
    """The one text that the phone must get, as the row's submits."""
    code, case = _case(source)
    password = derive(_KEYS.keys["k1"], Inputs(VERSION, case, code, 6, DIGITS))
    return text.split(_wording(source).format(code=code, password=password), row)


class Store(QueueModel):
    """The queues, and what the re-issue does between them: one outcome and one reply for each text."""

    def decide(self, now: datetime, count: int, engine: str, room: int) -> tuple[int, list[Outbox]]:
        waiting = [row for row in self.inbox if row.outcome is None][:count]
        handed = []
        for row in waiting:
            row.outcome = "issued"
            account, case = _case(row.source)
            reply = self.put(now, row.link, row.source, inbox_id=row.id, account=account, case_id=case)
            if len(handed) < room:
                reply.state, reply.claimed_by, reply.attempts = "claimed", engine, 1
                reply.due_at = now + LEASE
                handed.append(reply)
        return len(waiting), handed


class World:
    def __init__(self, seed: int, loop: clock.Loop) -> None:
        self.loop = loop
        self.draw = draw = random.Random(seed)
        self.broken: list[str] = []
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []
        self.server = Server(random.Random(draw.random()), Store())
        self.server.on_commit = self.committed
        self.carrier = carrier = Carrier(loop, random.Random(draw.random()), lambda c: c.transport.wire.owner)
        self.network = Network(loop, random.Random(draw.random()), lambda: Connection(carrier))
        loop.create_connection = self.connect  # type: ignore[method-assign,assignment]
        self.link = Link(
            name="carrier",
            host="simulated",
            window=draw.choice([1, 2, 10]),
            tps=draw.choice([0, 0, 3, 50]),
            bind=draw.choice(["transceiver", "transceiver", "pair"]),
            binds=draw.choice([1, 1, 1, 2]),
            enquire_link=draw.choice([1.0, 4.0]),
            response_timeout=draw.choice([1.0, 5.0]),
            submit_timeout=draw.choice([1.0, 5.0]),
        )
        carrier.engines_window, carrier.engines_timeout = self.link.window, self.link.submit_timeout
        carrier.trace, carrier.on_acknowledged = self.trace, self.acknowledged
        carrier.on_submit = self.arrived
        carrier.on_overrun = lambda count: self.break_(f"{count} submits in a window of {self.link.window}")
        self.engines: dict[str, Engine] = {}
        self.claims: dict[int, list[str]] = defaultdict(list)
        """Row → whose each of its claims was."""
        self.submitted: Counter[tuple[int, str, int, int]] = Counter()
        """(row, engine, attempt, part) → submits."""
        self.settled_at: dict[int, int] = {}
        """Row → how many claims it had had when it was settled for good."""
        self.told: dict[tuple[str, int, int], Response] = {}
        """(engine, row, part) → the last answer of the carrier that ended it; part 0: a refusal for good."""
        """(engine, row) → what the engine was told of it, if that was final."""

    # --- what is seen ---

    def trace(self, line: str) -> None:
        self.lines.append(f"{self.loop.time() - clock.BEGINNING:9.4f} {line}")

    def break_(self, what: str) -> None:
        self.trace(f"BROKEN: {what}")
        self.broken.append(what)

    async def connect(self, factory, host, port, **options):
        engine = self.engines[host]
        return await self.network.connect(engine, lambda: self.watch(engine, factory()))

    def watch(self, engine: Engine, connection):
        """Look over the shoulder of an engine's session."""
        session = connection.session
        request, receive = session.request, session.receive

        def watched_request(pdu, now, context=None):
            sequence = request(pdu, now, context)
            self.submits(engine, session, context[0].due, context[1])
            return sequence

        def watched_receive(data, now):
            events = receive(data, now)
            for event in events:
                if isinstance(event, Response) and (event.accepted or event.pdu.status == FOR_GOOD):
                    message, number = event.context
                    self.told[engine.name, message.due.id, number if event.accepted else 0] = event
            return events

        session.request, session.receive = watched_request, watched_receive
        return connection

    def submits(self, engine: Engine, session, due: Due, number: int) -> None:
        self.trace(f"{engine.name} submits row {due.id}.{number}, attempt {due.attempts}")
        self.counts["submits"] += 1
        if self.claims[due.id][due.attempts - 1 : due.attempts] != [engine.name]:
            self.break_(f"{engine.name} submits row {due.id}, which it has not claimed")
        self.counts["further parts"] += number > 1
        self.submitted[due.id, engine.name, due.attempts, number] += 1
        if self.submitted[due.id, engine.name, due.attempts, number] > 1:
            self.break_(f"{engine.name} submits row {due.id}.{number} twice for one claim")
        if due.attempts >= self.settled_at.get(due.id, 1000):
            self.break_(f"{engine.name} submits row {due.id} after it was settled")
        for part in (0, number):
            told = self.told.get((engine.name, due.id, part))
            if told is not None:
                since = self.claims[due.id][told.context[0].due.attempts : due.attempts]  # type: ignore[index]
                if set(since) <= {engine.name}:
                    self.break_(
                        f"{engine.name} submits row {due.id}.{number} again, although it was told of it"
                    )
        if session.pending > self.link.window:
            self.break_(f"{session.pending} submits pending in a window of {self.link.window}")
        now = self.loop.time()
        if now - engine.leases.certain_at > TTL:
            self.break_(f"{engine.name} submits row {due.id}, and another engine may hold the link")
        engine.submits.append(now)
        while engine.submits[0] < now - 1.0:
            engine.submits.popleft()
        tps = self.link.tps
        if tps and len(engine.submits) > tps + max(1, tps // 10) + 1:
            self.break_(f"{len(engine.submits)} submits within a second with tps = {tps}")

    def arrived(self, submit: Submit) -> None:
        rows = [row.id for row in self.server.model.outbox.values() if row.destination == submit.destination]
        if not any(submit.body in parts(submit.destination, row) for row in rows):
            self.break_(f"{submit.destination} gets a text that is not its own")

    def acknowledged(self, text_: Text, part: int) -> None:
        model = self.server.model
        whole = any((row.source, row.text) == (text_.source, text_.words) for row in model.inbox)
        if not whole and not any(
            s.arrival.source == text_.source and s.arrival.number == part + 1 for s in model.segments
        ):
            self.break_(f"text {text_.number}.{part} is acknowledged and not stored")

    def committed(self, engine: str, name: str, args: tuple, result) -> None:
        self.counts[name] += 1
        model = self.server.model
        match name:
            case "claim_outbox" | "decide":
                claimed = result if name == "claim_outbox" else result[1]
                for due in claimed:
                    self.claims[due.id].append(engine)
                self.counts["handed over"] += name == "decide" and len(claimed)
                if claimed:
                    how = "claims" if name == "claim_outbox" else "is handed"
                    self.trace(f"{engine} {how} rows {[due.id for due in claimed]}")
            case "settle_outbox":
                self.trace(f"{engine} settles {[(s.id, s.state) for s in args[1]]}")
                for s in args[1]:
                    row = model.outbox[s.id]
                    if row.state in ("sent", "failed"):
                        self.settled_at.setdefault(row.id, len(self.claims[row.id]))
                    if not s.tried and row.claimed_by is None and row.state == "ready":
                        del self.claims[row.id][row.attempts :]
            case "accept":
                self.trace(f"{engine} accepts {[(a.source[-3:], a.number, int(a.suspect)) for a in args[2]]}")
            case "release_outbox" | "open_session":
                self.trace(f"{engine} {name}")

    # --- what goes on ---

    async def play(self) -> None:
        for _ in range(2):
            self.start_engine()
        self.lead_texts()
        self.lead_trouble()
        await asyncio.sleep(TROUBLE)
        if self.draw.random() < 0.05:
            await self.lose_the_store_for_long()
        self.make_peace()
        await self.until_well(PEACE)
        if not self.broken:
            self.send(self.send(None))
            await self.until_well(PEACE)
        self.check()

    def start_engine(self) -> None:
        name = f"engine{len(self.engines) + 1}"
        self.trace(f"{name} starts")
        context = contextvars.copy_context()
        context.run(clock.PROCESS.set, name)
        self.engines[name] = context.run(Engine, self, name)

    def lead_texts(self) -> None:
        for _ in range(self.draw.randint(3, 15)):
            self.loop.call_later(self.draw.random() * TROUBLE, self.send_now_and_then)

    def send_now_and_then(self) -> None:
        text_ = self.send(None)
        if self.draw.random() < 0.3:
            self.loop.call_later(self.draw.random() * 3, self.send, text_)

    def send(self, again_after: Text | None) -> Text:
        """A person texts: something new, or the same once more."""
        number = len(self.carrier.texts) + 1
        source, words = f"8490{number:07}", f"BH MK {number:010}"
        if again_after is not None:
            source, words = again_after.source, again_after.words
        cut = self.draw.randrange(1, len(words)) if self.draw.random() < 0.2 else 0
        pieces = [words[:cut], words[cut:]] if cut else [words]
        text_ = Text(number, source, words, pieces, again_after)
        self.carrier.send(text_)
        return text_

    def lead_trouble(self) -> None:
        draw = self.draw
        carrier, server = self.carrier, self.server
        if draw.random() < 0.5:
            carrier.refuses, carrier.forgets = draw.random() * 0.4, draw.random() * 0.3
            carrier.refuses_for_good, carrier.odd = draw.random() * 0.05, draw.random() * 0.3
            carrier.refuses_binds = draw.random() * 0.4
            carrier.slow = draw.choice([0.002, 0.3, 6.0])
        if draw.random() < 0.5:
            self.network.slow = draw.choice([0.01, 0.1])
        if draw.random() < 0.5:
            server.loses, server.slow = draw.random() * 0.3, draw.choice([0.01, 0.5])
        troubles = draw.sample(self.troubles(), draw.randint(1, 4))
        for _ in range(draw.randint(0, 8)):
            self.loop.call_later(draw.random() * TROUBLE, self.trouble, draw.choice(troubles))

    def troubles(self) -> list[Callable[[], object]]:
        return [
            self.cut,
            self.cut,
            self.stall,
            self.carrier_away,
            self.kill,
            self.kill,
            self.stop_engine,
            self.lose_lease,
            self.hang,
            self.store_away,
            self.store_slow,
            self.unbind,
        ]

    def trouble(self, what: Callable[[], object]) -> None:
        self.trace(f"trouble: {what.__name__}")
        self.counts[what.__name__] += 1
        what()

    def cut(self) -> None:
        draw = self.draw
        for wire in self.network.wires:
            sees = draw.choice([(True, True), (True, False), (False, True), (False, False)])
            wire.cut(notice=tuple(draw.random() * draw.choice([0, 2]) if s else None for s in sees))  # type: ignore[arg-type]

    def stall(self) -> None:
        # An OK that comes after the carrier's patience has ended cannot be told from one that came in time: what
        # that carrier delivers again is stored again.
        longest = 1.0 if self.carrier.patience < 10 else 6.0
        for wire in self.network.wires:
            wire.stall(self.draw.random() * longest)

    def carrier_away(self) -> None:
        for wire in self.network.wires:
            wire.cut(notice=(self.draw.random() * 0.1, 0.0))
        self.network.refuses = True
        self.loop.call_later(self.draw.random() * 4, self.carrier_back)

    def carrier_back(self) -> None:
        self.network.refuses = False

    def unbind(self) -> None:
        for connection in self.carrier.bound:
            connection.session.unbind(self.loop.time())
            connection.flush()

    def living(self) -> list[Engine]:
        return [engine for engine in self.engines.values() if engine.alive and not engine.stopping]

    def kill(self) -> None:
        if living := self.living():
            engine = self.draw.choice(living)
            vanish = self.draw.random() < 0.2
            self.trace(f"{engine.name} dies{', and its host with it' if vanish else ''}")
            engine.die(vanish=vanish)
            self.loop.call_later(self.draw.random() * 3, self.start_engine)

    def hang(self) -> None:
        # Of a carrier of little patience the same is true as with stall(): what is too short to be noticed adds to
        # the time until our answer.
        draw, short = self.draw, (0.3 if self.carrier.patience < 10 else HUNG)
        seconds = draw.choice([draw.random() * short, HUNG * 1.3 + draw.random() * 10])
        if living := self.living():
            engine = draw.choice(living)
            self.trace(f"{engine.name} hangs for {seconds:.1f} s")
            self.loop.hang(engine.name, seconds)
            if seconds > (left := TTL - engine.leases.age(self.link.name)) > 0:
                self.loop.call_later(left, engine.leases.cut)

    def stop_engine(self) -> None:
        if living := self.living():
            engine = self.draw.choice(living)
            self.trace(f"{engine.name} stops")
            context = contextvars.copy_context()
            context.run(clock.PROCESS.set, engine.name)
            engine.tasks.append(self.loop.create_task(engine.stop(), context=context))
            self.loop.call_later(self.draw.random() * 3, self.start_engine)

    def lose_lease(self) -> None:
        for engine in self.living():
            engine.leases.cut()

    def store_away(self) -> None:
        self.server.away = True
        self.server.restart()
        self.loop.call_later(self.draw.random() * 6, self.store_back)

    def store_back(self) -> None:
        self.server.away = False

    def store_slow(self) -> None:
        was, self.server.slow = self.server.slow, self.draw.choice([1.0, 4.0, 12.0])
        self.loop.call_later(self.draw.random() * 6, setattr, self.server, "slow", min(was, 0.5))

    async def lose_the_store_for_long(self) -> None:
        self.trace("trouble: the store is gone")
        self.counts["store gone"] += 1
        self.store_away()
        end = self.loop.time() + LET_GO + 10 + self.draw.random()
        while self.loop.time() < end:
            self.server.away = True
            await asyncio.sleep(0.1)
        for engine in self.living():
            if engine.esme.binds:
                self.break_(f"{engine.name} is bound, and has known for long nothing of its lease")

    def make_peace(self) -> None:
        self.trace("peace")
        carrier, server, network = self.carrier, self.server, self.network
        carrier.refuses = carrier.refuses_for_good = carrier.forgets = carrier.odd = carrier.refuses_binds = (
            0.0
        )
        carrier.slow = network.slow = 0.002
        server.away, server.loses, server.slow = False, 0.0, 0.002
        network.refuses = False

    # --- what must be ---

    async def until_well(self, seconds: float) -> None:
        end = self.loop.time() + seconds
        while not self.broken and (lacks := self.lacks()):
            if self.loop.time() > end:
                self.break_(f"after {seconds:.0f} s of peace: {lacks}")
                return
            await asyncio.sleep(0.25)

    def lacks(self) -> str:
        """What is not well yet."""
        if left := [t.number for t in self.carrier.texts if not t.acknowledged]:
            return f"texts {left} are not acknowledged"
        model = self.server.model
        if any(row.outcome is None for row in model.inbox):
            return "a text has no outcome"
        if left := [row.id for row in model.outbox.values() if row.state in ("ready", "claimed")]:
            return f"replies {left} are not settled"
        holders = set(self.server.leases.values())
        bound = Counter(connection.transport.wire.owner.name for connection in self.carrier.bound)
        if len(holders) != self.link.binds or bound != dict.fromkeys(holders, len(self.link.bind_kinds)):
            return f"the binds are {bound}, the leases with {sorted(holders)}"
        return ""

    def check(self) -> None:
        model, counts = self.server.model, self.counts
        stored = Counter((row.source, row.text) for row in model.inbox)
        texts: dict[tuple[str, str], list[Text]] = defaultdict(list)
        for text_ in self.carrier.texts:
            texts[text_.source, text_.words].append(text_)
        for key, sent in texts.items():
            clean = (
                not any(t.doubtful for t in sent) and len(set().union(*(t.connections for t in sent))) == 1
            )
            least = len(sent) if clean else 1
            first = min(
                (row.received_at for row in model.inbox if (row.source, row.text) == key), default=None
            )
            late = (
                first is not None
                and max(t.offered_at for t in sent) > (first + REDELIVERY - clock.EPOCH).total_seconds() - 1
            )
            counts["too late"] += late
            if not least <= stored[key] <= (1000 if late else len(sent)):
                self.break_(f"texts {[t.number for t in sent]} are stored {stored[key]} times")
            counts["texts again"] += len(sent) > 1 and clean
        for key in stored.keys() - texts.keys():
            self.break_(f"stored and never sent: {key}")
        answered = Counter(row.inbox_id for row in model.outbox.values())
        if any(answered[row.id] != 1 or row.outcome is None for row in model.inbox):
            self.break_("a text has not exactly one outcome and reply")
        for row in model.outbox.values():
            whole = parts(row.destination, row.id)
            needed = range(1, len(whole) + 1) if row.state == "sent" else [0]
            if not any(all((name, row.id, n) in self.told for n in needed) for name in self.engines):
                self.break_(f"reply {row.id} is {row.state}, and no answer of the carrier says so")
            if row.attempts > MAX_ATTEMPTS:
                self.break_(f"reply {row.id} was tried {row.attempts} times")
            arrived = {s.body for s in self.carrier.submits if s.taken and s.destination == row.destination}
            if row.state == "sent" and not arrived.issuperset(whole):
                self.break_(f"reply {row.id} is sent, and its phone has not got the whole of it")
        self.broken += self.server.bugs
        counts["texts"], counts["redelivered"] = (
            len(self.carrier.texts),
            sum(t.doubtful for t in self.carrier.texts),
        )
        counts["replies"] = len(model.outbox)


class _Log(logging.Handler):
    """What the code logs is part of the trace; an exception in it is a bug."""

    world: World

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.exc_info:
            self.world.break_(f"log: {line} ({record.exc_info[1]!r})")
        else:
            self.world.trace(f"log: {line}")


def run(seed: int, jitter: random.Random) -> Result:
    """Simulate one seed, inside `clock.virtual_time()`, which gives `jitter`."""
    jitter.seed(seed)
    loop = clock.Loop()
    loop.set_exception_handler(lambda _, context: world.break_(f"loop: {context}"))
    world = World(seed, loop)
    log, handler = logging.getLogger("caplai.channels"), _Log()
    handler.world = world
    kept = log.handlers[:], log.propagate, log.level
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    try:
        loop.run_until_complete(world.play())
    finally:
        for engine in world.engines.values():
            engine.alive = False
        loop.set_exception_handler(lambda _, context: None)
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
        log.handlers, log.propagate = kept[:2]
        log.setLevel(kept[2])
    digest = hashlib.sha256("\n".join(world.lines).encode()).hexdigest()
    return Result(seed, world.broken, world.counts, digest, world.lines)
