"""Upgrade under load: the old version on the new schema, beside the new version; then the old one goes."""

import asyncio
import io
import subprocess
import tarfile
import time
from pathlib import Path

from caplai.local_postgres import LocalPostgres
from tests.hosts.apart import apart
from tests.hosts.world import World, run

OLD = "e854a5db2412a2a05e09dddc249a632de8ffb70b"
"""The last commit before the second migration."""
ROOT = Path(__file__).parents[2]


def git(*arguments):
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)


def lacks():
    known = git("cat-file", "-e", f"{OLD}^{{commit}}").returncode == 0
    return None if known else f"the commit {OLD[:12]} is not in this copy of the repository"


def old_version(folder):
    with tarfile.open(fileobj=io.BytesIO(git("archive", OLD, "caplai").stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@apart(lacks=lacks())
def test_an_upgrade_under_load():
    run(story)


async def story(folder):
    old = old_version(folder / "old")
    server = LocalPostgres(folder / "postgres")
    dsn = server.ensure_running().dsn
    found = {}
    try:
        async with World(folder) as world:
            await world.carrier()
            del world.link["submit_timeout"]  # the old version knows no such setting
            world.use(dsn, dsn)
            status, said = world.command("migrate", tree=old)
            assert status == 0, said
            world.fill()
            status, said = world.command("engine")
            assert (status, "Run: caplai migrate" in said) == (1, True), said

            engines = [world.engine(f"old-engine-{n}", tree=old) for n in (1, 2)]
            web = world.web("old-web", tree=old)
            world.begin()
            await world.texts_are_taken(time.monotonic(), 30)
            await asyncio.sleep(3)

            # The schema comes first, while the old version works.
            began = time.monotonic()
            status, said = await asyncio.to_thread(world.command, "migrate")
            assert status == 0, said
            found["seconds to migrate"] = round(time.monotonic() - began, 1)
            await asyncio.sleep(1)
            found["longest wait of a text meanwhile"] = round(world.phones.longest_wait(began - 1), 1)
            assert found["longest wait of a text meanwhile"] < 10

            # Whoever is started again by then runs on it, too.
            for part in (engines[0], web):
                assert await asyncio.to_thread(part.stop) is not None
                part.start()
            await asyncio.sleep(3)

            # The new version comes beside the old one, which then goes, one after the other.
            new = [world.engine(f"new-engine-{n}") for n in (1, 2)]
            world.web("new-web")
            await asyncio.sleep(4)
            for part in (*engines, web):
                assert part.alive, f"{part.name} did not last"
                began = time.monotonic()
                assert await asyncio.to_thread(part.stop) is not None, f"{part.name} did not stop"
                world.parts.remove(part)
                found[f"after {part.name} stopped"] = round(await world.texts_are_taken(began, 30), 1)
            world.urls.pop(0)
            assert world.holder() in new
            found["longest wait in all"] = round(world.phones.longest_wait(), 1)
            return found | await world.end_well()
    finally:
        server.stop()
