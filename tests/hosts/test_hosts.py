"""Separate hosts on a network: cut off and killed under load, one after the other; nothing is lost or twice."""

import asyncio
import time

from bench._lan import Lan
from bench._load import until
from caplai import processes
from caplai.local_postgres import LocalPostgres
from tests.hosts.apart import apart
from tests.hosts.world import World, run


def serve(folder, host):
    """A database server on that host, for all of the network."""
    hba = folder / "hba.conf"
    hba.write_text("local all caplai peer map=caplai\nhost all caplai 10.79.0.0/24 trust\n")
    settings = {"listen_addresses": host.address, "hba_file": str(hba), "shared_buffers": "64MB"}
    server = LocalPostgres(folder / "postgres", settings=settings)
    with host.inside():
        return server, server.ensure_running().dsn


@apart(network=True)
def test_hosts_cut_off_and_killed_under_load():
    run(story)


async def story(folder):
    lan = Lan()
    database, carrier = lan.host("database"), lan.host("carrier")
    engine_hosts = [lan.host(f"engine{n}") for n in (1, 2, 3)]
    web_hosts = [lan.host(f"web{n}") for n in (1, 2)]
    server, dsn = serve(folder, database)
    found = {}
    try:
        async with World(folder) as world:
            await world.carrier(carrier)
            world.use(dsn, f"postgresql://caplai@{database.address}/caplai")
            await asyncio.to_thread(processes.migrate)
            world.fill()
            engines = {world.engine(host.name, host): host for host in engine_hosts}
            webs = [world.web(host.name, host) for host in web_hosts]
            world.begin()
            await world.texts_are_taken(time.monotonic(), 30)

            # The engine that holds the link is cut off: another one takes it over.
            first = world.holder()
            engines[first].cut()
            found["taken over from a host that is cut off"] = await taken(world, 25)
            second = world.holder()
            assert second is not first
            # Back again, it stands by.
            await asyncio.sleep(3)
            engines[first].mend()
            await asyncio.sleep(8)
            assert world.holder() is second
            assert world.simulator.smsc.bound == 1
            assert first.alive

            # A host dies, without a goodbye to anybody.
            engines[second].cut()
            second.kill()
            found["taken over from a host that died"] = await taken(world, 25)
            assert world.holder() is not second
            engines[second].mend()
            second.start()
            # An engine that meets no database at its start ends by itself.
            assert await until(lambda: world.serves(second), 40)

            # The database's host is away for 20 seconds.
            database.cut()
            await asyncio.sleep(20)
            assert world.simulator.smsc.waiting
            database.mend()
            found["after the database was cut off for 20 s"] = await taken(world, 30)

            # A web host dies while people sign in.
            web_hosts[0].cut()
            webs[0].kill()
            began, before = time.monotonic(), world.people.signed_in
            assert await until(lambda: world.people.signed_in > before + 3, 40)
            found["people sign in, a web host dead"] = round(time.monotonic() - began, 1)
            web_hosts[0].mend()
            webs[0].start()

            # The carrier is cut off.
            carrier.cut()
            await asyncio.sleep(12)
            carrier.mend()
            found["after the carrier was cut off for 12 s"] = await taken(world, 40)

            assert all(part.alive for part in world.parts)
            return found | await world.end_well()
    finally:
        server.stop()


async def taken(world, seconds):
    """Seconds until a text that is sent from now on is taken; what is on its way by now does not count."""
    await asyncio.sleep(0.5)
    return round(await world.texts_are_taken(time.monotonic(), seconds), 1)
