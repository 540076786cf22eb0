"""To phones: what is due is claimed, made into text in memory only, submitted, and settled by its answer."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg

from caplai.channels.connection import Connection
from caplai.channels.links import Link, verdict
from caplai.domain.issuing import Keyring
from caplai.service.deliver import KEY_RETRY, Verdict, compose, drop_dead, postpone, settle
from caplai.smpp import text
from caplai.smpp.pdu import Command, ShortMessage, Status
from caplai.smpp.session import RequestLost, Response
from caplai.store import queues
from caplai.store.db import DatabaseThreads
from caplai.store.keyring import KeyringError
from caplai.store.queues import Due, Settled

log = logging.getLogger(__name__)

GATHER = 0.004
"""Seconds that a result waits for its neighbours, so that they share one commit."""
BATCH = 500
LEASE = timedelta(seconds=90)
"""How long a claimed message is ours: longer than any window of unanswered submits stays open."""
QUIET = (0.5, 20.0)
"""Seconds that a carrier which throttles is left alone: at first, and at the most."""
POLL = 1.0
"""Seconds between looks at the outbox when nobody wakes us."""


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
        self._store_is = store_is
        self._stopping = False
        self._due = asyncio.Event()
        self._freed = asyncio.Event()
        self._lacks_key = False
        self._settled: list[Settled] = []
        self._settled_event = asyncio.Event()
        self._unwritten = 0
        self._in_flight = 0
        self._quiet = 0.0
        self._quiet_until = 0.0
        self._allowance = 0.0
        self._allowance_at = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether a submit waits for its answer, or a result for being written."""
        return bool(self._in_flight or self._unwritten)

    def wake(self) -> None:
        """Something may be due."""
        self._due.set()

    def room(self) -> None:
        """A connection has room for submits."""
        self._freed.set()

    def stop(self) -> None:
        """Claim nothing new."""
        self._stopping = True
        self._due.set()

    def answered(self, event: Response) -> None:
        """The SMSC answered a submit."""
        assert isinstance(event.context, Due)
        pdu = event.pdu
        self._heed(pdu.status)
        result = Verdict.SENT if event.accepted else verdict(pdu.status or Status.ESME_RUNKNOWNERR)
        message_id = getattr(pdu, "message_id", None) if self._link.receipts else None
        self._land(
            settle(event.context, result, datetime.now(UTC), status=pdu.status, message_id=message_id or None)
        )

    def lost(self, event: RequestLost) -> None:
        """No answer will come to a submit."""
        assert isinstance(event.context, Due)
        self._land(settle(event.context, Verdict.AGAIN, datetime.now(UTC)))

    def _land(self, settled: Settled) -> None:
        self._in_flight -= 1
        self._freed.set()
        self._settle(settled)

    async def send_due(self) -> None:
        """Claim what is due, as much as fits the window, and submit it."""
        while not self._stopping:
            connection = self._sender()
            room = min(connection.session.free, self._allowed()) if connection else 0
            claimed: list[Due] = []
            if connection and room > 0 and self._unwritten < 4 * BATCH:
                try:
                    claimed = await self._database.run(
                        queues.claim_outbox, self._link.name, self._engine, min(room, BATCH), LEASE
                    )
                except psycopg.Error:
                    self._store_is(False)
                    await asyncio.sleep(POLL)
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
            async with asyncio.timeout(quiet or (POLL if room or not self._link.tps else 1 / self._link.tps)):
                await event.wait()
        except TimeoutError:
            pass  # the slow poll is the safety net
        event.clear()

    def _allowed(self) -> int:
        """How many messages the carrier allows now: none while it throttles; else a bucket that holds a tenth
        of a second of its TPS.
        """
        now = time.monotonic()
        if now < self._quiet_until:
            return 0
        if not self._link.tps:
            return BATCH
        room = max(1.0, self._link.tps / 10)
        self._allowance = min(room, self._allowance + (now - self._allowance_at) * self._link.tps)
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
            log.exception("link %s: message %d cannot be sent", self._link.name, due.id)
            self._settle(settle(due, Verdict.NEVER, datetime.now(UTC)))
            return
        if pdu is None:
            if not self._lacks_key:
                log.error("link %s: this host lacks an issuing key; replies wait for it", self._link.name)
            self._lacks_key = True
            self._settle(postpone(due, KEY_RETRY))
            return
        self._lacks_key = False
        self._in_flight += 1
        if self._link.tps:
            self._allowance -= 1

    def _submit_sm(self, due: Due, message: str) -> ShortMessage:
        link = self._link
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
                await self._database.run(queues.settle_outbox, self._engine, batch)
            except psycopg.Error:
                self._store_is(False)
                self._settled = batch + self._settled
                self._settled_event.set()
                await asyncio.sleep(0.5)
            else:
                self._unwritten -= len(batch)
                pauses = [settled.again_in for settled in batch if settled.state == "ready"]
                if pauses:
                    asyncio.get_running_loop().call_later(min(pauses), self.wake)
