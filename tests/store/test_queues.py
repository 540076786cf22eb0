"""Accepting: what is the same message, also when its twin is only being committed."""

import threading

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


def test_after_a_minute_it_is_a_new_message(conn):
    old, new = (queues.open_session(conn, "viettel", name) for name in ("one", "two"))
    queues.accept(conn, "viettel", old, [arrival()], None)
    conn.execute("update inbox set received_at = received_at - interval '59 seconds'")
    queues.accept(conn, "viettel", new, [arrival(Suspect.UNCONFIRMED)], None)
    assert count(conn) == 1
    conn.execute("update inbox set received_at = received_at - interval '2 seconds'")
    queues.accept(conn, "viettel", new, [arrival(Suspect.UNCONFIRMED)], None)
    assert count(conn) == 2
