"""The engine: one asyncio loop for the links, threads of the store that decide. All of it is wiring."""

import asyncio
import logging
import random
import re
import signal
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import psycopg
from prometheus_client.core import Metric

from caplai import __version__
from caplai.channels.aggregator_out import AggregatorOut
from caplai.channels.esme import Esme
from caplai.channels.outbound import LEASE
from caplai.config import Config
from caplai.health import Health, listener
from caplai.reports import rollups
from caplai.service import retention
from caplai.service.presence import Presence
from caplai.service.reissue import reissue_inbox, reissue_one_by_one
from caplai.service.requests import Handover, Rules
from caplai.store import queues
from caplai.store.db import DatabaseThreads, conninfo, is_at_fault_itself
from caplai.store.gauges import BOUND, Depths, look
from caplai.store.keyring import KINDS, KeyringError, Keys
from caplai.store.leases import Leases
from caplai.store.queues import Due
from caplai.watch.metrics import gauge
from caplai.wiring import reissue_rules, retention_rules

log = logging.getLogger(__name__)

DECIDE_BATCH = 500
POLL = 1.0
"""Seconds between looks at the inbox when nobody wakes us."""
SCRAPE = 1.5
"""Seconds that a scrape waits for the database."""
HOUSEWORK_AFTER = (60.0, 300.0)
"""Seconds after the start when figures are first rolled up and old data is removed: not while messages that have
waited come in, and not in every engine at once."""


class Engine:
    """All links and aggregators of the configuration, and the deciding between their inbox and outbox."""

    def __init__(self, config: Config, keyring: Keys) -> None:
        self.config = config
        self.keyring = keyring
        self.presence = Presence(
            "engine",
            __version__,
            keyring,
            lead=config.keys.lead,
            silence=config.keys.silence,
            session_age=config.signin.session_age,
        )
        self.name = self.presence.name
        # Two threads more than deciders: accepting must not wait for deciding.
        self.database = DatabaseThreads(
            config.engine_workers + len(config.links) + len(config.aggregators) + 2, by_key=True
        )
        self.leases = Leases()
        # A thread of its own: it takes as long as there is something to roll up or to remove.
        self._housework = DatabaseThreads(1, statement_timeout=10.0)
        self._housework_stop = threading.Event()
        self._work = asyncio.Event()
        self._stopping = False
        self._undecided = False
        self._end = asyncio.Event()
        self.failure: BaseException | None = None
        self.esmes = [
            Esme(
                link,
                self.database,
                self.leases,
                lambda: keyring.ring("issuing"),
                self.name,
                self._work.set,
                lambda: not self._lacks_keys(),
            )
            for link in config.links
        ]
        self.aggregators = [
            AggregatorOut(aggregator, self.database, lambda: keyring.ring("issuing"), self.name)
            for aggregator in config.aggregators
        ]
        self.ways: list[Esme | AggregatorOut] = [*self.esmes, *self.aggregators]

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT; then finish what is in the windows and unbind.

        Raises what one of its tasks failed with: an engine must not go on half alive, and whoever started it
        (`caplai up`, systemd) starts it anew.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._end.set)
        watch = self.config.watch
        health = Health(self.keyring, self.problems)
        seen = listener(self.config, "engine", watch.engine_port, health, self.gauges)
        await self.start()
        await seen.start()
        await self._end.wait()
        log.info("engine: stopping")
        await self.stop()
        await seen.stop()
        health.close()
        if self.failure:
            raise self.failure

    async def start(self) -> None:
        rules = await self.database.run(lambda conn: reissue_rules(self.config, self.keyring, conn))
        await asyncio.to_thread(self.presence.start)
        self._tasks = [asyncio.create_task(esme.run(), name=f"link {esme.link.name}") for esme in self.esmes]
        self._tasks += [
            asyncio.create_task(out.run(), name=f"aggregator {out.aggregator.name}")
            for out in self.aggregators
        ]
        self._tasks += [
            asyncio.create_task(self._decide(rules), name=f"decider {n}")
            for n in range(self.config.engine_workers)
        ]
        self._tasks.append(asyncio.create_task(self._listen(), name="listen"))
        self._tasks.append(asyncio.create_task(self._keep_house(), name="housework"))
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A task of the engine ends by itself only through a bug."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("engine: %s failed", task.get_name(), exc_info=error)
            self.failure = error
            self._end.set()

    async def stop(self) -> None:
        self._stopping = True
        self._housework_stop.set()
        await asyncio.gather(*(way.stop() for way in self.ways))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.leases.close()
        await asyncio.to_thread(self.presence.stop)
        self._housework.close(cancel=True)
        self.database.close()

    def _lacks_keys(self) -> bool:
        try:
            return bool(self.keyring.missing())
        except KeyringError:
            return True

    # --- to be seen ---

    def problems(self) -> list[str]:
        """What keeps the engine from serving, but for database and keys: in plain words, at once."""
        found = ["the engine is stopping"] if self._end.is_set() else []
        if any(not esme.store_well for esme in self.esmes):
            found.append("the store is away; messages stay with the carriers")
        if self.esmes and not any(esme.binds or esme.stands_by for esme in self.esmes):
            states = ", ".join(f"{esme.link.name}: {esme.state}" for esme in self.esmes)
            found.append(f"no link is bound ({states})")
        return found

    async def gauges(self) -> Iterable[Metric]:
        """What is read anew for each scrape. While the database is away, what it would tell is left out."""
        esmes = {(esme.link.name,): esme for esme in self.esmes}
        found = [
            gauge(
                "caplai_link_binds",
                "Connections that are bound by this engine.",
                {key: esme.binds for key, esme in esmes.items()},
                "link",
            ),
            gauge(
                "caplai_link_stands_by",
                "Whether another engine holds the link.",
                {key: esme.stands_by for key, esme in esmes.items()},
                "link",
            ),
            gauge(
                "caplai_link_window",
                "Submits that may wait for their answer, on each connection.",
                {key: esme.link.window for key, esme in esmes.items()},
                "link",
            ),
            gauge(
                "caplai_link_in_window",
                "Submits that wait for their answer.",
                {key: esme.in_window for key, esme in esmes.items()},
                "link",
            ),
            gauge(
                "caplai_store_up",
                "Whether the links could store when they last tried.",
                {(): all(esme.store_well for esme in self.esmes)},
            ),
            gauge(
                "caplai_active_key_age_seconds",
                "Since the day that an active key's id names.",
                {(kind,): age for kind in KINDS if (age := self._key_age(kind)) is not None},
                "kind",
            ),
        ]
        try:
            async with asyncio.timeout(SCRAPE):
                depths = await self.database.run(look)
        except (psycopg.Error, TimeoutError):
            depths = None
        up = gauge(
            "caplai_database_up", "Whether the database answered this scrape.", {(): depths is not None}
        )
        return [*found, up, *(_of_the_queues(depths) if depths else [])]

    def _key_age(self, kind: str) -> float | None:
        try:
            day = re.search(r"\d{8}", self.keyring.ring(kind).active)
            return None if day is None else (datetime.now(UTC) - _midnight(day[0])).total_seconds()
        except (KeyringError, ValueError):
            return None

    async def _decide(self, rules: Rules) -> None:
        """Claim and decide, batch after batch, until the inbox is empty; then wait to be woken."""
        while not self._stopping:
            self._work.clear()
            if self._lacks_keys():  # who has them decides
                await _wait(self._work, POLL)
                continue
            try:
                decided = await self._decide_batch(rules)
            except psycopg.errors.QueryCanceled:
                await self._decide_one_by_one(rules)  # somebody holds a subject's lock for long
                continue
            except Exception as error:
                decided = 0
                if is_at_fault_itself(error):
                    log.exception("engine: a batch cannot be decided; looking for the message at fault")
                    await self._decide_one_by_one(rules)
                    continue
                self._say_once(error)
            else:
                self._say_once(None)
            if not decided:
                await _wait(self._work, POLL)

    async def _decide_batch(self, rules: Rules) -> int:
        """Decide a batch. Replies for which our own links have room are sent without being claimed first."""
        outbounds = {esme.link.name: esme.outbound for esme in self.esmes}
        kept = {name: outbound.reserve(DECIDE_BATCH) for name, outbound in outbounds.items()}
        handover = Handover(self.name, LEASE, {name: places.room for name, places in kept.items()})
        dues: list[Due] = []
        try:
            decided = await self.database.run(reissue_inbox, rules, DECIDE_BATCH, handover)
            dues = handover.dues
        except Exception:  # whatever it was: the commit may have gone through, and only its answer was lost
            for outbound in outbounds.values():
                outbound.doubt()
            raise
        finally:
            for name, outbound in outbounds.items():
                outbound.take([due for due in dues if due.link == name], kept[name])
        if decided > len(dues):
            self._wake_links()
        return decided

    async def _decide_one_by_one(self, rules: Rules) -> None:
        try:
            parked = await self.database.run(reissue_one_by_one, rules, DECIDE_BATCH)
        except Exception as error:
            self._say_once(error)
            await asyncio.sleep(POLL)
        else:
            self._wake_links()
            if parked:
                log.error("engine: parked %d messages that our own code fails on (caplai parked)", parked)

    def _say_once(self, error: Exception | None) -> None:
        """Log that nothing can be decided, and that it can be again, each once."""
        if error is not None and not self._undecided:
            log.error("engine: nothing can be decided (%s); messages wait", type(error).__name__)
        elif error is None and self._undecided:
            log.info("engine: messages are decided again")
        self._undecided = error is not None

    def _wake_links(self) -> None:
        for way in self.ways:
            way.wake()

    async def _keep_house(self) -> None:
        """Roll up the figures, then remove what is too old: what goes has been counted before."""
        await asyncio.sleep(random.uniform(*HOUSEWORK_AFTER))  # noqa: S311 - no secret
        keep = retention_rules(self.config)
        while not self._stopping:
            await self._work_of_the_house("figures", rollups.keep_built, self._housework_stop)
            await self._work_of_the_house(
                "retention", retention.run, keep, self._housework_stop, _say_removed
            )
            await asyncio.sleep(self.config.retention.every.total_seconds())

    async def _work_of_the_house(self, name: str, work: Callable[..., object], *args: object) -> None:
        try:
            await self._housework.run(work, *args)
        except psycopg.Error as error:
            log.warning("%s: will go on later (%s)", name, type(error).__name__)
        except Exception:  # a bug of ours there is no reason to stop answering people
            log.exception("%s: a run failed", name)

    async def _listen(self) -> None:
        """Be woken by what other processes store; the polls are the safety net."""
        while not self._stopping:
            try:
                async with await psycopg.AsyncConnection.connect(conninfo(), autocommit=True) as connection:
                    await connection.execute(f"listen {queues.INBOX_CHANNEL}")
                    await connection.execute(f"listen {queues.OUTBOX_CHANNEL}")
                    async for notify in connection.notifies():
                        if notify.channel == queues.INBOX_CHANNEL:
                            self._work.set()
                        self._wake_links()
            except psycopg.Error:
                await asyncio.sleep(POLL)


def _say_removed(done: retention.Done) -> None:
    if done.rows:
        later = "; it gave way to others and goes on later" if done.left else ""
        log.info("retention: %d %s%s", done.rows, done.says, later)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _of_the_queues(depths: Depths) -> list[Metric]:
    links: dict[tuple[str, ...], float] = {(link,): count for link, count in depths.outbox.items()}
    overdue: dict[tuple[str, ...], float] = {(link,): age for link, age in depths.outbox_overdue.items()}
    bounded = f"(counted up to {BOUND})."
    return [
        gauge("caplai_inbox_waiting", f"Messages to be decided {bounded}", {(): depths.inbox}),
        gauge(
            "caplai_inbox_oldest_seconds", "How long the first of them has waited.", {(): depths.inbox_age}
        ),
        gauge("caplai_inbox_parked", f"Messages that are set aside {bounded}", {(): depths.parked}),
        gauge("caplai_segments_waiting", f"Parts without their others {bounded}", {(): depths.segments}),
        gauge("caplai_outbox_waiting", f"Messages to be sent {bounded}", links, "link"),
        gauge("caplai_outbox_overdue_seconds", "How long ago the first of them was due.", overdue, "link"),
        gauge("caplai_mail_waiting", f"E-mails to be sent {bounded}", {(): depths.mail}),
        gauge(
            "caplai_mail_overdue_seconds",
            "How long ago the first of them was due.",
            {(): depths.mail_overdue},
        ),
        gauge("caplai_service_open", "Whether the operator has the service open.", {(): depths.open}),
        gauge("caplai_guess_alarm", "Whether the alarm about guesses is on.", {(): depths.guess_alarm}),
    ]


def _midnight(day: str) -> datetime:
    return datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
