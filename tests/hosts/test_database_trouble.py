"""The database's disk is full, its log's too; it hangs, it restarts: texts stay with the carrier, and it heals."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psycopg

from bench._load import until
from tests.hosts.apart import apart
from tests.hosts.world import World, run


class Disk:
    """A small disk, mounted at `folder`."""

    def __init__(self, folder, megabytes):
        folder.mkdir()
        size = f"size={megabytes}m,mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], check=True)
        self._ballast = folder / "ballast"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "--lazy", str(self._ballast.parent)], check=True)

    def fill(self):
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))

    def free(self):
        self._ballast.unlink()


def server_processes(data):
    def works_there(entry):
        with contextlib.suppress(OSError):
            return (entry / "comm").read_text() == "postgres\n" and os.path.samefile(entry / "cwd", data)
        return False

    return [
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and works_there(entry)
    ]


@apart()
def test_database_trouble_under_load():
    run(story)


async def story(folder):
    with Disk(folder / "disk", 256) as disk:
        return await trouble(folder, folder / "disk", disk)


async def trouble(folder, data, disk):
    pgdata = data / "postgres" / "pgdata"
    dsn = f"postgresql://caplai@/caplai?host={data}/postgres"
    found = {}

    def answers():
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(dsn, connect_timeout=2) as conn:
            return conn.execute("select to_regclass('process')").fetchone()[0]

    async with World(folder, data=data) as world:
        await world.carrier()
        world.use(dsn, dsn)
        up = world.up()
        assert await until(lambda: "caplai is up" in up.says(), 90)
        with psycopg.connect(dsn, autocommit=True) as conn:
            for setting in ("max_wal_size = '64MB'", "min_wal_size = '32MB'"):
                conn.execute(f"alter system set {setting}")
            conn.execute("select pg_reload_conf()")
        world.fill()
        world.begin()
        await world.texts_are_taken(time.monotonic(), 30)

        async def ails(*, some_fit=False):
            """Texts stay with the carrier: of those sent from now on none is taken (or only as `some_fit`)."""
            await asyncio.sleep(1)
            later = time.monotonic()
            await asyncio.sleep(5)
            assert world.simulator.smsc.waiting > 20
            assert some_fit or world.phones.first_taken(later) is None
            assert all(part.alive for part in world.parts)

        async def heals(what):
            found[what] = round(await world.texts_are_taken(time.monotonic(), 70), 1)

        # There is no room for another row.
        disk.fill()
        assert await until(lambda: "the store is away" in up.says(), 60)
        disk.fill()
        await ails(some_fit=True)  # pages that stood half empty
        disk.free()
        await heals("after a full disk")

        # There is no room for its log either: the server panics.
        disk.fill()
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as conn:
            for _ in range(50):
                disk.fill()
                conn.execute(
                    "select pg_logical_emit_message(false, 'test', repeat('x', 1000)), pg_switch_wal()"
                )
        assert not answers()
        await ails()
        disk.free()
        await heals("after a full disk for its log")

        # The machine hangs for ten seconds.
        stopped = server_processes(pgdata)
        assert len(stopped) > 5
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        await ails()
        await asyncio.sleep(4)
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await heals("after a server that hung")

        # It restarts.
        os.kill(int((pgdata / "postmaster.pid").read_text().split()[0]), signal.SIGINT)
        assert await until(lambda: up.says().count("the embedded database is back") >= 2, 40)
        await heals("after a restart")

        # And the engine said each of them once: nothing for each text.
        found["times that the log says so"] = said = up.says().count("the store is away")
        assert 4 <= said <= 12, said
        assert up.says().count("messages stay with the SMSC") == said
        well = await world.end_well()
        assert await asyncio.to_thread(up.stop) == 0
        return found | well
