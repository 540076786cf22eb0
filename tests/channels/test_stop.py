"""An engine that is told to stop (SIGTERM) finishes what it has begun: nothing is twice, nothing waits for a lease."""

import asyncio

import pytest
from django.conf import settings

from caplai.channels.aggregator_out import AggregatorOut
from caplai.channels.esme import Esme
from caplai.engine import Engine
from tests.channels.carrier import Carrier
from tests.channels.test_aggregator_out import Upstream, configured
from tests.channels.test_esme import engine
from tests.channels.test_submits import insert


@pytest.fixture(autouse=True)
def little_grace(monkeypatch):
    for way in (Esme, AggregatorOut):
        stop = way.stop
        monkeypatch.setattr(way, "stop", lambda self, stop=stop: stop(self, grace=1.0))


@pytest.fixture
def slow(conn):
    """Let every update that leads to a state take a while."""

    def make(state, seconds):
        conn.execute(
            "create function sleepy() returns trigger language plpgsql as"
            f" 'begin perform pg_sleep({seconds}); return new; end'"
        )
        conn.execute(
            "create trigger sleepy before update on outbox for each row"
            f" when (new.state = '{state}') execute function sleepy()"
        )

    yield make
    conn.execute("drop function sleepy cascade")


async def claim_under_way(conn):
    async with asyncio.timeout(10):
        while not conn.execute(
            "select 1 from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
        ).fetchone():
            await asyncio.sleep(0.01)


def states(conn):
    return conn.execute("select state, attempts from outbox").fetchall()


def test_what_the_carrier_answers_when_it_is_asked_to_unbind_is_written(conn, lan, slow):
    slow("sent", 0.02)

    async def play():
        async with Carrier() as carrier:
            carrier.answer = lambda submit: None
            carrier.before_unbind_response = lambda: [carrier.respond(each) for each in carrier.submitted]
            async with engine(carrier):
                await carrier.bound()
                insert(conn, "Xin chao.", 20)
                await carrier.replies(20)
            assert len(carrier.submitted) == 20

    asyncio.run(play())
    assert states(conn) == [("sent", 1)] * 20


def test_what_is_being_claimed_is_still_sent(conn, lan, slow):
    slow("claimed", 0.3)

    async def play():
        async with Carrier() as carrier, engine(carrier):
            await carrier.bound()
            insert(conn, "Xin chao.")
            await claim_under_way(conn)

    asyncio.run(play())
    assert states(conn) == [("sent", 1)]


def test_what_is_being_claimed_for_an_aggregator_is_still_sent(conn, lan, slow):
    slow("claimed", 0.3)

    async def play():
        async with Upstream() as upstream:
            running = Engine(configured(upstream.url), settings.KEYRING)
            await running.start()
            try:
                insert(conn, "Xin chao.")
                conn.execute("update outbox set link = 'vnpt'")
                await claim_under_way(conn)
            finally:
                await running.stop()
            assert len(upstream.requests) == 1

    asyncio.run(play())
    assert states(conn) == [("sent", 1)]
