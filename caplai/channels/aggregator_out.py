"""To phones by an aggregator: what is due is claimed, made into text in memory only, sent to its send URL, settled.

Any number of engines may do so side by side; a claim's lease says whose a message is. A request that got no answer
may have been taken all the same: it is sent again with the identical text and the same id.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import aiohttp
import psycopg

from caplai.channels.aggregator_in import SIGNATURE_HEADER, TIMESTAMP_HEADER, join, sign
from caplai.channels.aggregators import Aggregator, Send, verdict
from caplai.domain import msisdn
from caplai.domain.issuing import Keyring
from caplai.service.deliver import KEY_RETRY, Verdict, compose, drop_dead, postpone, settle
from caplai.store import queues
from caplai.store.db import DatabaseThreads
from caplai.store.keyring import KeyringError
from caplai.store.queues import Due, Settled
from caplai.watch import metrics, trail

log = logging.getLogger(__name__)

LEASE = timedelta(seconds=90)
"""How long a claimed message is ours: longer than any request takes."""
POLL = 1.0
"""Seconds between looks at the outbox when nobody wakes us."""
TIDY = 5.0
SEGMENT_PATIENCE = timedelta(seconds=60)
"""How long the parts of a long message wait for each other."""
QUIET = 60.0
"""Seconds that an aggregator is left alone at most, however long its Retry-After is."""
ID_HEADER = "Idempotency-Key"
"""The id of a message, the same however often it is sent: who keeps ids can drop a repeat."""


class AggregatorOut:
    """One aggregator, seen from the engine: its messages to phones, and parts that wait in vain."""

    def __init__(
        self, aggregator: Aggregator, database: DatabaseThreads, keyring: Callable[[], Keyring], engine: str
    ) -> None:
        self.aggregator = aggregator
        self._database = database
        self._keyring = keyring
        self._engine = engine
        self._stopping = False
        self._due = asyncio.Event()
        self._claiming = False
        self._sending: set[asyncio.Task[None]] = set()
        self._quiet_until = 0.0
        self._state = "well"

    def wake(self) -> None:
        """Something may be due."""
        self._due.set()

    async def run(self) -> None:
        """Send until stop()."""
        send = self.aggregator.send
        limit = aiohttp.TCPConnector(limit=send.window if send else 1)
        timeout = aiohttp.ClientTimeout(total=send.timeout if send else None)
        async with (
            aiohttp.ClientSession(connector=limit, timeout=timeout) as client,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self._tidy())
            while not self._stopping:
                claimed = await self._claim(send)
                for due in claimed:
                    task = tasks.create_task(self._handle(client, send, due))
                    self._sending.add(task)
                    task.add_done_callback(self._done)
                if not claimed:
                    await self._wait_for_work()

    async def stop(self, grace: float = 5.0) -> None:
        """Claim nothing new, and let what is under way end. What does not is due again when its lease has run out."""
        self._stopping = True
        self._due.set()
        end = time.monotonic() + grace
        while time.monotonic() < end and (self._claiming or self._sending):
            await asyncio.sleep(0.02)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._due.set()  # there is room for another

    async def _claim(self, send: Send | None) -> list[Due]:
        room = (send.window if send else 100) - len(self._sending)
        if room <= 0 or time.monotonic() < self._quiet_until:
            return []
        self._claiming = True
        try:
            return await self._database.run(
                queues.claim_outbox, self.aggregator.name, self._engine, room, LEASE
            )
        except psycopg.Error:
            self._say_state("the store is away")
            return []
        finally:
            self._claiming = False

    async def _wait_for_work(self) -> None:
        pause = max(0.0, self._quiet_until - time.monotonic()) or POLL
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._due.wait()
        self._due.clear()

    async def _handle(self, client: aiohttp.ClientSession, send: Send | None, due: Due) -> None:
        began = time.monotonic()
        settled = drop_dead(due)
        if settled is None and send is None:
            # The parts of a long message came one by one, some of them never, and no request waits for the answer.
            log.error("aggregator %s: message %d has no way to go", self.aggregator.name, due.id)
            settled = settle(due, Verdict.NEVER, datetime.now(UTC))
        elif settled is None and send is not None:
            try:
                settled = await self._send(client, send, due)
            except Exception:  # a message that can never be sent must not take the others with it
                log.exception("aggregator %s: message %d cannot be sent", self.aggregator.name, due.id)
                settled = settle(due, Verdict.NEVER, datetime.now(UTC))
        assert settled is not None
        due.age += time.monotonic() - began
        if await self._settle(settled):
            self._tell(due, settled)

    async def _send(self, client: aiohttp.ClientSession, send: Send, due: Due) -> Settled:
        try:
            text = compose(due, self._keyring())
        except KeyringError:
            text = None
        if text is None:
            self._say_state("this host lacks an issuing key; replies wait for it")
            return postpone(due, KEY_RETRY)
        trail.SUBMITTED.write([(due.inbox_id, due.id, due.kind, due.attempts, due.age)], self.aggregator.name)
        make = _kannel_request if self.aggregator.format == "kannel" else _json_request
        status, result = None, Verdict.AGAIN
        try:
            async with client.request(
                send.method, send.url, allow_redirects=False, **make(send, due, text)
            ) as answer:
                status = answer.status
                result = verdict(status)
                self._heed(status, answer.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:  # its text may hold the URL
            self._say_state(f"its send URL fails: {type(error).__name__}")
        else:
            if result is Verdict.NEVER:
                log.error("aggregator %s: message %d is refused: %d", self.aggregator.name, due.id, status)
            else:
                self._say_state("well" if result is Verdict.SENT else f"its send URL answers {status}")
        return settle(due, result, datetime.now(UTC), status=status)

    def _heed(self, status: int, retry_after: str) -> None:
        """Leave an aggregator that is overloaded alone for as long as it says."""
        if status in (429, 503) and retry_after.isdecimal():
            self._quiet_until = time.monotonic() + min(float(retry_after[:6]), QUIET)

    def _tell(self, due: Due, settled: Settled) -> None:
        """Let it be seen what became of a message, as the store has it now."""
        link = self.aggregator.name
        status = None if settled.status is None else f"HTTP {settled.status}"
        metrics.settled.labels(link, settled.state).inc()
        metrics.answered_seconds.observe([due.age] if settled.state == "sent" else [], link)
        trail.SETTLED.write(
            [(due.inbox_id, due.id, settled.state, due.attempts, status, due.age)],
            link,
        )

    async def _settle(self, settled: Settled) -> bool:
        """Write what became of a message; while the store is away, again and again until the lease ends. Whether it
        is written.
        """
        end = time.monotonic() + LEASE.total_seconds()
        while time.monotonic() < end:
            try:
                await self._database.run(queues.settle_outbox, self._engine, [settled])
            except psycopg.Error:
                self._say_state("the store is away")
                await asyncio.sleep(0.5)
            else:
                if settled.state == "ready":
                    asyncio.get_running_loop().call_later(settled.again_in, self.wake)
                return True
        return False

    def _say_state(self, state: str) -> None:
        """Log a change of the aggregator's state, once."""
        if state != self._state:
            self._state = state
            level = logging.INFO if state == "well" else logging.ERROR
            log.log(level, "aggregator %s: %s", self.aggregator.name, state)

    async def _tidy(self) -> None:
        """Join what waited too long for its other parts; it is decided like any message."""
        while not self._stopping:
            with contextlib.suppress(psycopg.Error):
                await self._database.run(queues.sweep_segments, self.aggregator.name, join, SEGMENT_PATIENCE)
            end = time.monotonic() + TIDY
            while not self._stopping and time.monotonic() < end:
                await asyncio.sleep(0.2)


def message_name(due: Due) -> str:
    return f"caplai-{due.id}"


def _phone(due: Due) -> str:
    """With its plus, which means TON 1 to Kannel; a sender that was no phone gets its answer as it wrote itself."""
    written = f"+{due.destination}"
    return written if due.destination_ton is None and msisdn.parse(written) else due.destination


def _kannel_request(send: Send, due: Due, text: str) -> dict:
    """The convention of Kannel's sendsms: a POST has the text as its body and all else in headers."""
    secret = send.secret.get_secret_value()
    if send.method == "GET":
        parameters = {
            "username": send.username,
            "password": secret,
            "from": due.sender,
            "to": _phone(due),
            "text": text,
            "charset": "utf-8",
            "id": message_name(due),
        }
        return {"params": parameters, "headers": {ID_HEADER: message_name(due)}}
    headers = {
        "X-Kannel-Username": send.username,
        "X-Kannel-Password": secret,
        "X-Kannel-From": due.sender,
        "X-Kannel-To": _phone(due),
        "Content-Type": "text/plain; charset=utf-8",
        ID_HEADER: message_name(due),
    }
    return {"headers": headers, "data": text.encode()}


def _json_request(send: Send, due: Due, text: str) -> dict:
    """The mirror of the webhook: the same fields, signed the same way."""
    body = json.dumps({"id": message_name(due), "from": due.sender, "to": _phone(due), "text": text}).encode()
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        TIMESTAMP_HEADER: timestamp,
        SIGNATURE_HEADER: "sha256=" + sign(send.secret.get_secret_value(), timestamp, body),
        ID_HEADER: message_name(due),
    }
    return {"headers": headers, "data": body}
