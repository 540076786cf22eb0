"""Accepting: what is the same message, also when its twin is only being committed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest

from caplai.store import queues
from caplai.store.db import connect
from caplai.store.queues import Arrival, Suspect


def arrival(suspect=Suspect.NO, body="BH MK 0123456789"):
    return Arrival("84327000686", 1, 1, "8079", 0, body, suspect=suspect)


def count(conn):
    return conn.execute("select count(*) from inbox").fetchone()[0]


def test_a_redelivery_waits_for_the_commit_that_a_dead_engine_left_under_way(conn):
    old, new = (queues.open_session(conn, "viettel", name) for name in ("dead", "living"))
    done = threading.Event()

    def redeliver():
        with connect() as connection:
            queues.accept(connection, "viettel", new, [arrival(Suspect.UNCONFIRMED)], None)
        done.set()

    with connect() as dying:
        with dying.transaction():
            queues.accept(dying, "viettel", old, [arrival()], None)  # inside ours, so not committed yet
            thread = threading.Thread(target=redeliver)
            thread.start()
            assert not done.wait(0.5)
        assert done.wait(5)
        thread.join()
    assert count(conn) == 1


def test_what_is_not_suspect_waits_for_nobody(conn):
    session = queues.open_session(conn, "viettel", "one")
    with connect() as other, other.transaction():
        queues.accept(other, "viettel", session, [arrival()], None)
        queues.accept(conn, "viettel", session, [arrival()], None)
        assert count(conn) == 1
    assert count(conn) == 2


def test_a_suspect_is_the_same_message_only_if_its_twin_may_be_unacknowledged(conn):
    old = queues.open_session(conn, "viettel", "one")
    stored = queues.accept(conn, "viettel", old, [arrival()], None)
    queues.touch_session(conn, old, stored.at)  # known to be acknowledged
    new = queues.open_session(conn, "viettel", "two")
    queues.accept(conn, "viettel", new, [arrival(Suspect.UNCONFIRMED)], None)
    assert count(conn) == 2
    for same in (arrival(Suspect.ANY), arrival(Suspect.ANY)):
        queues.accept(conn, "viettel", new, [same], None)
    assert count(conn) == 2
    for other in (arrival(Suspect.ANY, "BH MK 0123456788"),):
        queues.accept(conn, "viettel", new, [other], None)
    queues.accept(conn, "another-link", new, [arrival(Suspect.ANY)], None)
    assert count(conn) == 4


def test_what_another_bind_stored_while_it_waited_here_is_the_same_message(conn):
    """A carrier that got no answer here delivered it there; that it had its answer there is no news of this one."""
    other, mine = (queues.open_session(conn, "viettel", name) for name in ("one", "two"))
    stored = queues.accept(conn, "viettel", other, [arrival()], None)
    queues.touch_session(conn, other, stored.at)
    conn.execute("update inbox set received_at = received_at - interval '2 seconds'")
    again = queues.accept(conn, "viettel", mine, [arrival(Suspect.UNCONFIRMED)], None, 3.0)
    assert (again.ids, again.known) == ([], 1)
    queues.accept(conn, "viettel", mine, [arrival(Suspect.UNCONFIRMED)], None, 1.0)
    assert count(conn) == 2


def test_a_late_heartbeat_neither_revives_a_bind_nor_forgets_what_was_acknowledged(conn):
    session = queues.open_session(conn, "viettel", "one")
    [now] = conn.execute("select now()").fetchone()
    queues.touch_session(conn, session, now, ended=True)
    queues.touch_session(conn, session, now - timedelta(seconds=1))
    queues.touch_session(conn, session, None)
    row = conn.execute("select confirmed_at, ended_at is not null from link_session").fetchone()
    assert row == (now, True)


def test_after_a_minute_it_is_a_new_message(conn):
    old, new = (queues.open_session(conn, "viettel", name) for name in ("one", "two"))
    queues.accept(conn, "viettel", old, [arrival()], None)
    conn.execute("update inbox set received_at = received_at - interval '59 seconds'")
    queues.accept(conn, "viettel", new, [arrival(Suspect.UNCONFIRMED)], None)
    assert count(conn) == 1
    conn.execute("update inbox set received_at = received_at - interval '2 seconds'")
    queues.accept(conn, "viettel", new, [arrival(Suspect.UNCONFIRMED)], None)
    assert count(conn) == 2


def part(number, total, reference=0):
    return Arrival("84327000686", 1, 1, "8079", 0, None, reference, total, number, payload=b"x")


def say_how_many(coding, parts, total):
    return f"{len(parts)} of {total}"


def sweep(begin):
    with connect() as connection:
        begin.wait()
        return queues.sweep_segments(connection, "viettel", say_how_many, timedelta(seconds=60))


def test_engines_that_sweep_at_once_join_each_set_as_a_whole(conn):
    for reference in range(30):
        parts = [part(number, 21, reference) for number in range(1, 21)]
        queues.accept(conn, "viettel", None, parts, say_how_many)
    conn.execute("update segment set received_at = now() - interval '2 minutes'")
    begin = threading.Barrier(3)
    with ThreadPoolExecutor(3) as engines:
        swept = [ids for ids in engines.map(sweep, [begin] * 3) if ids]
    assert sum(map(len, swept)) == 30
    assert conn.execute("select text, count(*) from inbox group by text").fetchall() == [("20 of 21", 30)]


@pytest.mark.parametrize("door", ["smpp", "aggregator"])
def test_a_sweep_waits_for_the_last_part_that_is_being_stored(conn, door):
    queues.accept(conn, "viettel", None, [part(1, 2)], say_how_many)
    conn.execute("update segment set received_at = now() - interval '2 minutes'")
    with ThreadPoolExecutor(1) as engine:
        with connect() as storing, storing.transaction():
            if door == "smpp":
                queues.accept(storing, "viettel", None, [part(2, 2)], say_how_many)
            else:
                queues.lock_parts(storing, "viettel", part(2, 2))
            swept = engine.submit(sweep, threading.Barrier(1))
            with pytest.raises(TimeoutError):
                swept.result(0.3)
            if door == "aggregator":
                whole = queues.accept_part(storing, "viettel", None, part(2, 2), say_how_many)
                assert whole.text == "2 of 2"
        assert swept.result(5) == []


def test_a_receipt_and_the_answer_that_names_its_message_meet_when_they_come_at_once(conn):
    wording = queues.intern(conn, ["Xin chao."])["Xin chao."]
    conn.execute(
        "insert into outbox (kind, wording, link, sender, destination)"
        " values ('notice', %s, 'viettel', '8079', '84900000001')",
        [wording],
    )
    [due] = queues.claim_outbox(conn, "viettel", "one", 1, timedelta(seconds=60))
    receipt = {"message_ids": ["77"], "state": "DELIVRD", "error": None}
    with connect() as other, ThreadPoolExecutor(1) as link:
        with conn.transaction():
            queues.settle_outbox(conn, "one", [queues.Settled(due.id, "sent", 0, "77")])
            stored = link.submit(queues.accept_receipts, other, "viettel", [receipt])
            with suppress(TimeoutError):
                stored.result(0.3)
        assert stored.result(5) == 0
    assert conn.execute("select receipt from outbox").fetchall() == [("DELIVRD",)]
