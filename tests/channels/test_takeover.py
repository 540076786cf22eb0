"""Several engines and one link: one holds it, another takes it over when that one dies."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import contextmanager

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
