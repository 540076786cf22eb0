"""The engine: one asyncio loop for the links, threads of the store that decide. All of it is wiring."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable

import psycopg

from caplai.channels.esme import Esme
from caplai.config import Config
from caplai.domain.policy import ERRORS, Outcome
from caplai.domain.replies import prepare
from caplai.service.reissue import Form, Rules, park_poison, reissue_inbox
from caplai.store import queues
from caplai.store.db import DatabaseThreads, conninfo
from caplai.store.keyring import KeyringFile

log = logging.getLogger(__name__)

DECIDE_BATCH = 500
POLL = 1.0
"""Seconds between looks at the inbox when nobody wakes us."""


def reissue_rules(config: Config, keyring: KeyringFile, conn: psycopg.Connection) -> Rules:
    """What the re-issue needs of the configuration; its wordings are interned in the store."""
    texts = config.reply_texts
    wordings = {
        (outcome, short_code): prepare(
            getattr(texts, str(outcome)),
            keyword=config.service.keyword,
            command=config.service.command,
            short_code=short_code,
            portal=config.service.portal,
        )
        for outcome in {Outcome.ISSUED, *ERRORS}
        for short_code in config.service.short_codes
    }
    ids = queues.intern(conn, wordings.values())
    senders = [link.name for link in config.links if "mt" in link.use]
    password = config.password
    return Rules(
        grammar=config.grammar,
        limits=config.policy_limits,
        form=Form(password.length, password.alphabet),
        long_form=Form(password.long_length, password.long_alphabet),
        lifetime=password.lifetime,
        guesses=config.signin.guesses,
        guess_window=config.signin.guess_window,
        keyring=lambda: keyring.ring("issuing"),
        wordings={key: ids[text] for key, text in wordings.items()},
        short_code=config.service.short_codes[0],
        mt_links=frozenset(senders),
        mt_link=config.service.mt_link or next(iter(senders), None),
    )


class Engine:
    """All links of the configuration, and the deciding between their inbox and outbox."""

    def __init__(self, config: Config, keyring: KeyringFile) -> None:
        self.config = config
        self.keyring = keyring
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        # Two threads more than deciders: accepting must not wait for deciding.
        self.database = DatabaseThreads(config.engine_workers + len(config.links) + 2)
        self._work = asyncio.Event()
        self._stopping = False
        self.esmes = [
            Esme(link, self.database, lambda: keyring.ring("issuing"), self.name, self._work.set)
            for link in config.links
        ]

    async def run(self, ready: Callable[[], None] | None = None) -> None:
        """Run until SIGTERM or SIGINT; then finish what is in the windows and unbind."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await self.start()
        if ready:
            ready()
        await stop.wait()
        log.info("engine: stopping")
        await self.stop()

    async def start(self) -> None:
        rules = await self.database.run(lambda conn: reissue_rules(self.config, self.keyring, conn))
        self._tasks = [asyncio.create_task(esme.run(), name=f"link {esme.link.name}") for esme in self.esmes]
        self._tasks += [
            asyncio.create_task(self._decide(rules), name=f"decider {n}")
            for n in range(self.config.engine_workers)
        ]
        self._tasks.append(asyncio.create_task(self._listen(), name="listen"))
        for task in self._tasks:
            task.add_done_callback(_report)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*(esme.stop() for esme in self.esmes))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.database.close()

    async def _decide(self, rules: Rules) -> None:
        """Claim and decide, batch after batch, until the inbox is empty; then wait to be woken."""
        away = False
        while not self._stopping:
            self._work.clear()
            try:
                decided = await self.database.run(reissue_inbox, rules, DECIDE_BATCH)
            except psycopg.OperationalError:
                if not away:
                    log.error("engine: the database is away; nothing is decided until it is back")
                away, decided = True, 0
            except Exception:
                log.exception("engine: a batch cannot be decided; looking for the message at fault")
                await self._find_poison(rules)
                continue
            else:
                if away:
                    log.info("engine: the database is back")
                away = False
            if decided:
                for esme in self.esmes:
                    esme.wake()
            else:
                await _wait(self._work, POLL)

    async def _find_poison(self, rules: Rules) -> None:
        try:
            parked = await self.database.run(park_poison, rules, DECIDE_BATCH)
        except psycopg.Error:
            await asyncio.sleep(POLL)
        else:
            if parked:
                log.error("engine: parked %d messages that our own code fails on", parked)

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
                        for esme in self.esmes:
                            esme.wake()
            except psycopg.Error:
                await asyncio.sleep(POLL)


def _report(task: asyncio.Task[None]) -> None:
    """A task of the engine never ends by itself; if one does, that is a bug, and the engine must not go on
    half-alive: whoever started it (`caplai up`, systemd) starts it anew.
    """
    if not task.cancelled() and task.exception() is not None:
        log.critical("engine: %s failed", task.get_name(), exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
