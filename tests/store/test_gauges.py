"""What monitoring is told of the queues: bounded, and link by link."""

from caplai.store import queues
from caplai.store.gauges import BOUND, look


def test_empty_queues_are_empty(conn):
    depths = look(conn)
    assert (depths.inbox, depths.inbox_age, depths.parked, depths.segments) == (0, 0, 0, 0)
    assert (depths.outbox, depths.outbox_overdue, depths.open, depths.guess_alarm) == ({}, {}, True, False)
    assert (depths.mail, depths.mail_overdue) == (0, 0)


def test_mails_that_wait_are_told(conn):
    for urgent, seconds, state in (
        (True, 5, "ready"),
        (False, 90, "claimed"),
        (False, -60, "ready"),
        (True, 999, "sent"),
    ):
        conn.execute(
            "insert into mail (name, kind, account, until, urgent, due_at, state)"
            " values (gen_random_uuid(), 'x', '', now(), %s, now() - %s * interval '1 second', %s)",
            [urgent, seconds, state],
        )
    depths = look(conn)
    assert depths.mail == 3
    assert 89 < depths.mail_overdue < 120


def test_a_full_link_hides_no_other(conn):
    wording = queues.intern(conn, ["x"])["x"]
    insert = (
        "insert into outbox (kind, wording, link, sender, destination, due_at, state) select 'bad_code', %s, %s,"
        " '8079', '84', now() - %s * interval '1 second', %s from generate_series(1, %s)"
    )
    conn.execute(insert, [wording, "a", 0, "ready", BOUND + 5])
    conn.execute(insert, [wording, "b", 90, "claimed", 2])
    conn.execute(insert, [wording, "c", -60, "ready", 1])
    conn.execute(insert, [wording, "d", 90, "sent", 1])
    depths = look(conn)
    assert depths.outbox == {"a": BOUND, "b": 2, "c": 1}
    assert depths.outbox_overdue["b"] > 89 and depths.outbox_overdue["c"] == 0


def test_what_waits_and_what_is_parked_are_told_apart(conn):
    for _ in range(3):
        queues.accept(conn, "a", None, [queues.Arrival("84327000686", 1, 1, "8079", 0, "BH")], None)
    first = conn.execute("select min(id) from inbox").fetchone()[0]
    queues.park(conn, first, "ValueError")
    conn.execute("update inbox set received_at = received_at - interval '1 hour' where id = %s", [first])
    conn.execute(
        "update inbox set received_at = received_at - interval '1 minute' where id = %s", [first + 1]
    )
    depths = look(conn)
    assert (depths.inbox, depths.parked) == (2, 1)
    assert 59 < depths.inbox_age < 3000
