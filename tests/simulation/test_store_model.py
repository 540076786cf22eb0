"""The model of the queues is the queues: what is done to it and to PostgreSQL leaves the same rows.

Several engines take turns; some claim or accept and are heard of no more. Time passes by moving what PostgreSQL has
into the past; what passes by itself, for both: a rule is one transaction, whose time the model takes. Hypothesis looks
for the shortest way to a difference.
"""

import functools
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    run_state_machine_as_test,
)
from hypothesis.stateful import rule as plain_rule

from caplai.store import queues
from caplai.store.queues import Arrival, Settled, Suspect
from tests.simulation.store import QueueModel

ENGINES = st.sampled_from(["one", "two", "three"])
SUSPECTS = st.sampled_from(list(Suspect))
TABLES = ("inbox", "segment", "outbox", "link_session", "wording")


def arrivals():
    texts = st.builds(
        lambda source, text, suspect: Arrival(source, 1, 1, "8079", 0, text, suspect=suspect),
        st.sampled_from(["84901", "84902"]),
        st.sampled_from(["BH", "BH MK"]),
        SUSPECTS,
    )
    parts = st.builds(
        lambda source, reference, number, payload, suspect: Arrival(
            source, 1, 1, "8079", 0, None, reference, 2, number, payload, suspect
        ),
        st.sampled_from(["84901", "84902"]),
        st.sampled_from([7, 8]),
        st.sampled_from([1, 2]),
        st.sampled_from([b"a", b"b"]),
        SUSPECTS,
    )
    return st.lists(texts | parts, min_size=1, max_size=4)


def join(coding, parts, total):
    return "+".join(f"{number}{parts[number].decode()}" for number in sorted(parts)) + f"/{total}"


def rule(**drawn):
    """A rule that is done to both at one moment, however slow the machine is."""

    def of(function):
        @functools.wraps(function)
        def at_one_moment(self, **values):
            with self.conn.transaction():
                [[now]] = self.conn.execute("select now()").fetchall()
                self.now = now + self.passed
                function(self, **values)

        return plain_rule(**drawn)(at_one_moment)

    return of


class Both(RuleBasedStateMachine):
    """Rules do the same to both; each ends with a comparison."""

    conn = None

    def __init__(self):
        super().__init__()
        self.model = QueueModel()
        self.passed = timedelta()
        """How far the model's clock is before PostgreSQL's."""
        self.sessions = {}
        """Number in the model → id in PostgreSQL."""
        self.stored = []
        """(the time of an accept in the model, in PostgreSQL)."""
        self.held = []
        """Claims that nobody has settled yet: (engine, row)."""

    @initialize()
    def begin(self):
        for table in TABLES:  # truncate makes new files, and is much slower
            self.conn.execute(f"delete from {table}")
        self.conn.execute("select setval(pg_get_serial_sequence('outbox', 'id'), 1, false)")
        [[self.wording]] = self.conn.execute(
            "insert into wording (text) values ('x') returning id"
        ).fetchall()

    def compare(self):
        inbox = self.conn.execute("select source, text, session from inbox").fetchall()
        numbers = {real: number for number, real in self.sessions.items()}
        # In no order: which of the sets that become whole at one moment is first is nobody's business.
        assert Counter((source, text, numbers.get(session)) for source, text, session in inbox) == Counter(
            (row.source, row.text, row.session) for row in self.model.inbox
        )
        segments = self.conn.execute(
            "select source, reference, number, payload, joined_at is not null from segment order by id"
        ).fetchall()
        assert sorted((*row[:3], bytes(row[3]), row[4]) for row in segments) == sorted(
            (
                s.arrival.source,
                s.arrival.reference,
                s.arrival.number,
                s.arrival.payload,
                s.joined_at is not None,
            )
            for s in self.model.segments
        )
        outbox = self.conn.execute(
            "select id, state, attempts, claimed_by, status, message_id, settled_at is not null,"
            " due_at <= now() and state in ('ready', 'claimed') from outbox order by id"
        ).fetchall()
        assert outbox == [
            (
                row.id,
                row.state,
                row.attempts,
                row.claimed_by,
                row.status,
                row.message_id,
                row.settled_at is not None,
                row.due_at <= self.now and row.state in ("ready", "claimed"),
            )
            for row in self.model.outbox.values()
        ]

    @rule(seconds=st.sampled_from([3, 20, 61, 100, 601]))
    def time_passes(self, seconds):
        by = timedelta(seconds=seconds)
        self.passed += by
        for table, columns in {
            "inbox": ["received_at"],
            "segment": ["received_at", "joined_at"],
            "outbox": ["created_at", "due_at", "settled_at"],
            "link_session": ["confirmed_at"],
        }.items():
            moved = ", ".join(f"{column} = {column} - %(by)s" for column in columns)
            self.conn.execute(f"update {table} set {moved}", {"by": by})
        self.stored = [(model, real - by) for model, real in self.stored]

    @rule(engine=ENGINES)
    def bind(self, engine):
        number = self.model.open_session(self.now, "link", engine)
        self.sessions[number] = queues.open_session(self.conn, "link", engine)

    @precondition(lambda self: self.sessions)
    @rule(
        data=st.data(),
        batch=arrivals(),
        link=st.sampled_from(["link", "link", "other"]),
        waited=st.sampled_from([0.0, 5.0]),
    )
    def accept(self, data, batch, link, waited):
        number = data.draw(st.sampled_from([*self.sessions]))
        real = queues.accept(self.conn, link, self.sessions[number], batch, join, waited)
        model = self.model.accept(self.now, link, number, batch, join, waited)
        assert (len(model.ids), model.known) == (len(real.ids), real.known)
        self.stored.append((model.at, real.at))
        self.compare()

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def confirm(self, data):
        number = data.draw(st.sampled_from([*self.sessions]))
        model, real = data.draw(st.sampled_from(self.stored))
        self.model.touch_session(self.now, number, model)
        queues.touch_session(self.conn, self.sessions[number], real)

    @rule(patience=st.sampled_from([5, 60]))
    def sweep(self, patience):
        wait = timedelta(seconds=patience)
        real = queues.sweep_segments(self.conn, "link", join, wait)
        assert len(self.model.sweep_segments(self.now, "link", join, wait)) == len(real)
        self.compare()

    @rule(link=st.sampled_from(["link", "link", "other"]))
    def put(self, link):
        self.model.put(self.now, link, "84901")
        self.conn.execute(
            "insert into outbox (created_at, due_at, kind, wording, link, sender, destination)"
            " values (now(), now(), 'x', %s, %s, '8079', '84901')",
            [self.wording, link],
        )
        self.compare()

    @rule(engine=ENGINES, count=st.sampled_from([1, 2, 10]), lease=st.sampled_from([30, 90]))
    def claim(self, engine, count, lease):
        wait = timedelta(seconds=lease)
        due = sorted(r.due_at for r in self.model.outbox.values() if r.state in ("ready", "claimed"))
        if count < len(due) and len(set(due)) < len(due):
            count = 10  # which of several that are due at one moment come first is nobody's business
        real = queues.claim_outbox(self.conn, "link", engine, count, wait)
        model = self.model.claim_outbox(self.now, "link", engine, count, wait)
        assert [(row.id, row.attempts) for row in real] == [(row.id, row.attempts) for row in model]
        self.held += [(engine, row.id) for row in model]
        self.compare()

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        state=st.sampled_from(["sent", "failed", "expired", "ready", "ready"]),
        tried=st.booleans(),
        again_in=st.sampled_from([0.0, 2.0, 64.0]),
        status=st.sampled_from([None, 0, 88]),
        twice=st.booleans(),
    )
    def settle(self, data, state, tried, again_in, status, twice):
        """Perhaps long after somebody else has claimed the row, and perhaps twice."""
        engine, id_ = held = data.draw(st.sampled_from(self.held))
        settled = Settled(id_, state, status, "m" if state == "sent" else None, again_in, tried)
        for _ in range(1 + twice):
            real = queues.settle_outbox(self.conn, engine, [settled])
            assert self.model.settle_outbox(self.now, engine, [settled]) == real
        if data.draw(st.booleans()):
            self.held.remove(held)
        self.compare()

    @rule()
    def take_over(self):
        queues.release_outbox(self.conn, "link")
        self.model.release_outbox(self.now, "link")
        self.compare()

    @rule(engine=ENGINES, held=st.sets(st.integers(1, 8)))
    def forget_claims(self, engine, held):
        queues.release_unheld(self.conn, "link", engine, held)
        self.model.release_unheld(self.now, "link", engine, held)
        self.compare()


def play(conn, examples, steps=25, phases=tuple(Phase)):
    run_state_machine_as_test(
        type("Both", (Both,), {"conn": conn}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=phases,
            report_multiple_bugs=False,
        ),
    )


def test_the_model_is_the_queues(conn):
    play(conn, 10, 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_model_is_the_queues_for_long(conn):
    play(conn, 300, 40)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("settle_outbox", lambda self, now, engine, settled: None),
        ("_is_twin", lambda *_: False),
        ("release_outbox", lambda self, now, link: None),
    ],
)
def test_a_wrong_model_is_found(conn, monkeypatch, method, wrong):
    monkeypatch.setattr(QueueModel, method, wrong)
    with pytest.raises(AssertionError):
        play(conn, 300, phases=[Phase.generate])
