"""Several engines and one link: one holds it, another takes it over when that one dies."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psycopg
import pytest
from django.conf import settings

from caplai.smpp.pdu import Status
from caplai.store.db import conninfo
from tests.channels.carrier import Carrier
from tests.channels.test_esme import TEXT, engine, outcomes


@contextmanager
def engine_process(carrier):
    """`caplai engine` as a process of its own, on the same database, keyring and carrier."""
    link = {"name": "viettel", "host": "127.0.0.1", "port": carrier.port, "password": "secret"}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")},
        "CAPLAI_DATABASE_URL": conninfo(),
        "CAPLAI_DATA_DIR": str(settings.CAPLAI.data_dir),
        "CAPLAI_LINKS": json.dumps([link]),
    }
    process = subprocess.Popen([sys.executable, "-m", "caplai", "engine", "--quiet"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_killed_engines_link_and_work_are_taken_over(conn, lan):
    async def play():
        async with Carrier() as carrier:
            with engine_process(carrier) as first:
                await carrier.until(lambda: len(carrier.binds) == 1, 30)
                await carrier.bound()
                async with engine(carrier) as second:
                    carrier.answer_submits = False
                    assert await carrier.deliver(TEXT) == Status.ESME_ROK
                    await carrier.replies(1)
                    await asyncio.sleep(1.5)
                    assert len(carrier.binds) == 1, "the second engine must stand by"
                    first.kill()
                    carrier.answer_submits = True
                    await carrier.until(lambda: len(carrier.binds) == 2, 5)
                    before, again = await carrier.replies(2, seconds=5)
                    assert before == again
                    await carrier.bound()
                    assert await carrier.deliver("BH") == Status.ESME_ROK
                    assert second.failure is None

    asyncio.run(play())
    assert outcomes(conn)[0] == "issued"


@pytest.mark.slow  # it waits for a lease to run out
def test_an_engine_that_hung_takes_and_sends_nothing_that_is_anothers_by_now(conn, lan):
    """What the carrier sent it meanwhile still waits in its socket when it wakes, long delivered to another."""

    async def play():
        async with Carrier() as carrier:
            with engine_process(carrier) as first:
                await carrier.until(lambda: len(carrier.binds) == 1, 30)
                await carrier.bound()
                async with engine(carrier) as second:
                    await asyncio.sleep(1.5)
                    first.send_signal(signal.SIGSTOP)
                    await carrier.deliver(TEXT, wait=False)
                    try:
                        await carrier.until(lambda: len(carrier.binds) == 2, 20)
                        await carrier.bound(2)
                        assert await carrier.deliver(TEXT) == Status.ESME_ROK
                        await carrier.replies(1)
                        await asyncio.sleep(2.5)  # its acknowledgement is known to have arrived
                    finally:
                        first.send_signal(signal.SIGCONT)
                    await carrier.until(lambda: len(carrier.connections) == 1, 10)  # it unbinds
                    assert await carrier.deliver("BH") == Status.ESME_ROK
                    await carrier.replies(2)
                    assert second.failure is None

    asyncio.run(play())
    assert outcomes(conn) == ["issued", "bad_syntax"]
    assert len({engine for (engine,) in conn.execute("select engine from link_session").fetchall()}) == 2


@pytest.mark.slow
def test_nothing_is_sent_while_another_engine_may_hold_the_link(conn, lan, monkeypatch):
    """The connection that carries the lease is lost, and with it the certainty; all else works."""
    monkeypatch.setattr("caplai.channels.esme.TTL", 1.0)
    monkeypatch.setattr("caplai.channels.esme.LET_GO", 3.0)

    async def play():
        async with Carrier() as carrier, engine(carrier) as running:
            await carrier.bound()
            hold = running.leases.hold

            async def lost(link, binds):
                raise psycopg.OperationalError

            running.leases.hold = lost
            while running.leases.age("viettel") <= 1.0:
                await asyncio.sleep(0.05)
            assert await carrier.deliver(TEXT) == Status.ESME_ROK
            await carrier.until(lambda: not carrier.connections, 5)  # and in the end the bind is given up
            assert carrier.submitted == []
            running.leases.hold = hold
            await carrier.replies(1)
            assert len(carrier.binds) == 2
            assert running.failure is None

    asyncio.run(play())


def test_a_link_with_two_binds_is_held_by_two_engines(conn, lan):
    async def play():
        async with Carrier() as carrier, engine(carrier, binds=2), engine(carrier, binds=2):
            await carrier.bound(2)
            async with engine(carrier, binds=2):
                await asyncio.sleep(1.5)
                assert len(carrier.binds) == 2
            assert await carrier.deliver(TEXT) == Status.ESME_ROK
            await carrier.replies(1)

    asyncio.run(play())
    assert outcomes(conn) == ["issued"]


def test_what_one_bind_did_not_acknowledge_comes_again_by_another_that_is_old(conn, lan, monkeypatch):
    monkeypatch.setattr("caplai.channels.inbound.SUSPICION", 0.0)

    async def play():
        async with Carrier() as carrier, engine(carrier, binds=2), engine(carrier, binds=2):
            await carrier.bound(2)
            carrier.answer_submits = False  # so nothing tells us that our acknowledgement has arrived
            assert await carrier.deliver(TEXT) == Status.ESME_ROK
            await carrier.replies(1)
            carrier.receiver.writer.transport.abort()
            await carrier.until(lambda: len(carrier.connections) == 1)
            assert await carrier.deliver(TEXT) == Status.ESME_ROK

    asyncio.run(play())
    assert outcomes(conn) == ["issued"]


def test_an_engine_that_stops_hands_the_link_on(conn, lan):
    async def play():
        async with Carrier() as carrier:
            async with engine(carrier):
                await carrier.bound()
            async with engine(carrier):
                await carrier.until(lambda: len(carrier.binds) == 2, 5)
                await carrier.bound()
                assert await carrier.deliver(TEXT) == Status.ESME_ROK

    asyncio.run(play())
