"""A message whose sender waits for the answer, beside others that are under way."""

import threading

import pytest

from caplai.channels.aggregator_in import join
from caplai.service.answer import answer
from caplai.store.db import connect
from caplai.store.models import Inbox
from caplai.store.queues import Arrival

LAN, PHONE = "0123456789", "84327000686"


def whole(text=f"BH MK {LAN}"):
    return Arrival(PHONE, 1, 1, "8079", 0, text)


def part(number, text):
    return Arrival(PHONE, 1, 1, "8079", 8, None, 7, 2, number, text.encode("utf-16-be"))


@pytest.fixture
def beside(conn, rules, lan):
    """Begin the first request, and the second beside it; the second's answer, once the first has been committed."""

    def run(*requests):
        second = []
        done = threading.Event()

        def ask(connection, request_id, arrival):
            return answer(connection, "vnpt", request_id, arrival, rules, join=join, at_once=True)

        def other():
            with connect() as connection, connection.transaction():
                second.append(ask(connection, *requests[1]))
            done.set()

        thread = threading.Thread(target=other)
        with conn.transaction():
            first = ask(conn, *requests[0])
            thread.start()
            assert not done.wait(0.3), "it did not wait"
        thread.join(10)
        return first, *second

    return run


def test_the_same_id_waits_for_the_first(beside):
    first, second = beside(("one", whole()), ("one", whole()))
    assert first == second
    assert f"Tai khoan: {LAN}/" in first
    assert Inbox.objects.count() == 1


def test_the_last_part_waits_for_the_one_that_is_being_stored(beside):
    first, second = beside(("p2", part(2, LAN[5:])), ("p1", part(1, f"BH MK {LAN[:5]}")))
    assert first == ""
    assert f"Tai khoan: {LAN}/" in second
    assert Inbox.objects.get().request_id == "p1"


def test_a_process_that_outlives_its_database_says_what_is_meant(conn, rules, lan):
    """A database that came back from a backup, or another one at the same address, numbers the texts anew."""
    conn.execute("truncate wording restart identity")
    conn.execute("insert into wording (text) select 'Old text ' || n from generate_series(1, 100) n")
    with conn.transaction():
        said = answer(conn, "vnpt", "one", whole(), rules, join=join, at_once=True)
    assert said.startswith(f"Cap lai mat khau thanh cong. Tai khoan: {LAN}/")
    with conn.transaction():
        said = answer(conn, "vnpt", "two", whole("BH"), rules, join=join, at_once=True)
    assert said.startswith("Tin nhan sai cu phap.")


def test_a_reply_that_cannot_be_found_is_no_silence(conn, rules, lan):
    conn.execute(
        "create function drop_it() returns trigger language plpgsql as 'begin return null; end';"
        " create trigger drop_it before insert on outbox for each row execute function drop_it()"
    )
    try:
        with pytest.raises(LookupError), conn.transaction():
            answer(conn, "vnpt", "one", whole(), rules, join=join, at_once=True)
        assert Inbox.objects.count() == 0
    finally:
        conn.execute("drop function drop_it cascade")
