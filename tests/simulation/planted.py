"""Bugs to plant, one at a time, so that it is seen that the simulation finds them."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

import psycopg

from caplai.channels import esme, inbound, outbound
from caplai.channels.connection import Connection
from caplai.channels.esme import Esme
from caplai.channels.inbound import Inbound
from caplai.channels.outbound import Outbound
from caplai.service.deliver import Verdict
from caplai.smpp.pdu import Status
from caplai.smpp.session import Session
from caplai.store import queues
from tests.simulation.store import Leases, QueueModel, Server


def _acknowledge_before_the_commit() -> AbstractContextManager:
    store = Inbound._store

    async def early(self, connection, items):
        for _, pdu, _ in items:
            self._answer(pdu, Status.ESME_ROK)
        await store(self, connection, items)

    return patch.object(Inbound, "_store", early)


def _a_stale_engine_settles() -> AbstractContextManager:
    settle = QueueModel.settle_outbox

    def as_anybody(self, now, engine, settled):
        for s in settled:
            self.outbox[s.id].state, self.outbox[s.id].claimed_by = "claimed", engine
        settle(self, now, engine, settled)

    return patch.object(QueueModel, "settle_outbox", as_anybody)


def _a_response_matches_the_oldest_request() -> AbstractContextManager:
    answered = Session._message_answered

    def oldest(self, pdu, now, events):
        pdu.sequence = next(iter(self._messages), pdu.sequence)
        answered(self, pdu, now, events)

    return patch.object(Session, "_message_answered", oldest)


def _the_window_has_no_end() -> AbstractContextManager:
    init = Connection.__init__

    def wide(self, *arguments):
        init(self, *arguments)
        self.session.window = 1000

    return patch.object(Connection, "__init__", wide)


def _nobody_locks_while_looking_for_a_twin() -> AbstractContextManager:
    async def nothing(self, who, exclusive):
        pass

    return patch.object(Server, "lock", nothing)


def _settle_as(mistaken: Callable[[Verdict, int | None], Verdict]) -> AbstractContextManager:
    settle = outbound.settle

    def settle_wrongly(due, verdict, now, *, status=None, message_id=None):
        return settle(due, mistaken(verdict, status), now, status=status, message_id=message_id)

    return patch.object(outbound, "settle", settle_wrongly)


def _no_answer_counts_as_sent() -> AbstractContextManager:
    return _settle_as(lambda verdict, status: Verdict.SENT if status is None else verdict)


def _a_refusal_for_now_is_for_good() -> AbstractContextManager:
    return _settle_as(lambda verdict, status: Verdict.NEVER if status else verdict)


def _every_engine_holds_the_link() -> AbstractContextManager:
    async def hold(self, link, binds):
        self.server.leases.setdefault((link, 0), self.engine)
        return True

    return patch.multiple(Leases, hold=hold, age=lambda self, link: 0.0)


def _a_batch_of_results_that_cannot_be_written_is_forgotten() -> AbstractContextManager:
    async def write_settled(self):
        while True:
            await self._settled_event.wait()
            self._settled_event.clear()
            batch, self._settled = self._settled, []
            self._unwritten -= len(batch)
            with contextlib.suppress(psycopg.Error):
                await self._database.run(queues.settle_outbox, self._engine, batch)

    return patch.object(Outbound, "write_settled", write_settled)


PLANTED: dict[str, Callable[[], AbstractContextManager]] = {
    "acknowledge before the commit": _acknowledge_before_the_commit,
    "a stale engine settles": _a_stale_engine_settles,
    "a response matches the oldest request": _a_response_matches_the_oldest_request,
    "the window has no end": _the_window_has_no_end,
    "no answer counts as sent": _no_answer_counts_as_sent,
    "look for no twins after a bind": lambda: patch.object(inbound, "SUSPICION", 0.0),
    "forget that a refused delivery is stored": lambda: patch.object(Inbound, "_doubt", lambda *_: None),
    "confirm what was answered with an error": lambda: patch.object(
        Connection, "doubtful_until", property(lambda self: 0.0, lambda self, value: None), create=True
    ),
    "parts of one message are twins": lambda: patch.object(
        inbound, "_twin", lambda pdu: (pdu.source, pdu.destination, b"")
    ),
    "a refusal for now is for good": _a_refusal_for_now_is_for_good,
    "forget what waits to be written": lambda: patch.object(
        outbound.Outbound, "_held", property(lambda self: set(), lambda self, value: None), create=True
    ),
    "every engine holds the link": _every_engine_holds_the_link,
    "a hang is not noticed": lambda: patch.object(Esme, "_notice_a_hang", lambda self: None),
    "a lease is certain for ever": lambda: patch.object(Leases, "age", lambda self, link: 0.0),
    "forget the parts that were taken": lambda: patch.object(
        Outbound, "_accepted", property(lambda self: {}, lambda self, value: None), create=True
    ),
    "keep the bind however long the store is away": lambda: patch.object(esme, "LET_GO", 1000.0),
    "nobody locks while looking for a twin": _nobody_locks_while_looking_for_a_twin,
    "results that cannot be written are forgotten": _a_batch_of_results_that_cannot_be_written_is_forgotten,
}
