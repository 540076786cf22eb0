"""Sign-ins by password over HTTP, beside the Argon2id that the same cores compute alone.

`caplai web` runs as it does in production, on PostgreSQL with fsync on; 16 people at a time, each on a connection of
their own, sign in with the password that they chose: first by the app's API, then by the page's form (which was
opened before; what opening it costs is measured apart). Before and after, argon2-cffi alone checks the same hash, in
as many processes as there are cores, while nobody signs in.

A sign-in's processor time is that of the web server and of PostgreSQL, all their processes. The people share the
cores with them and are no part of the service, so the ratio that is judged is one of processor time: what a hash
costs alone by what a sign-in costs. The ratio of the rates by the clock, people and all, stands beside it.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import psycopg
from argon2 import low_level

from bench import _http, _measure
from bench._site import PASSWORD, Site

BAR = 0.9
_AT_ONCE = 16
_LOGINS = 50_000
_API = "/_allauth/app/v1/auth/login"
_TOKEN = re.compile(rb'name="csrfmiddlewaretoken" value="([^"]+)"')
CORES = len(os.sched_getaffinity(0))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench signin", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="of sign-ins by each of the two ways (30)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="caplai-signin-") as folder:
        report = run(Path(folder), options.seconds)
    _measure.show(report, as_json=options.json)
    return 1 if report["broken"] else 0


def run(folder: Path, seconds: float) -> dict[str, object]:
    with Site(folder, accounts=_LOGINS, logins=_LOGINS) as site:
        asyncio.run(_sign_in(site, _Api, min(3.0, seconds), first=_LOGINS - 2000))  # both are warm now
        before = argon2(seconds / 2)
        done = {way.name: asyncio.run(_sign_in(site, way, seconds, first=first)) for way, first in _WAYS}
        opened = asyncio.run(_open_pages(site, seconds / 5))
        after = argon2(seconds / 2)
        broken = [each for one in done.values() for each in one.broken] + _check(site, done)
    hashes, hash_ms = (before.rate + after.rate) / 2, (before.ms + after.ms) / 2
    report: dict[str, object] = {
        "cores": CORES,
        "argon2_per_second": round(hashes, 1),
        "argon2_cpu_ms": round(hash_ms, 2),
    }
    for name, one in done.items():
        report |= {
            f"{name}_per_second": round(one.rate, 1),
            f"{name}_web_cpu_ms": round(one.web_ms, 2),
            f"{name}_postgres_cpu_ms": round(one.postgres_ms, 2),
            f"{name}_people_cpu_ms": round(one.people_ms, 2),
            f"{name}_p50_ms": round(one.p50_ms),
            f"{name}_p99_ms": round(one.p99_ms),
            f"{name}_rate_ratio": round(one.rate / hashes, 3),
            f"{name}_ratio": round(hash_ms / (one.web_ms + one.postgres_ms), 3),
        }
        if hash_ms / (one.web_ms + one.postgres_ms) < BAR:
            broken.append(f"{name}: less than {BAR} of Argon2id alone")
    return {
        **report,
        "page_opened_web_cpu_ms": round(opened, 2),
        "sign_ins": sum(one.count for one in done.values()),
        "bar": BAR,
        "broken": broken,
    }


# --- the yardstick ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hashing:
    rate: float
    """Hashes a second, of all cores."""
    ms: float
    """Processor time of one."""


def argon2(seconds: float) -> Hashing:
    """Argon2id (m = 19 MiB, t = 2, p = 1) by argon2-cffi, in as many processes as there are cores."""
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        pool.map(_hash_for, [0.2] * CORES, chunksize=1)  # they are up
        done = pool.map(_hash_for, [seconds] * CORES, chunksize=1)
    return Hashing(
        sum(count / took for count, took, _ in done),
        1000 * sum(cpu for *_, cpu in done) / sum(count for count, *_ in done),
    )


def _hash_for(seconds: float) -> tuple[int, float, float]:
    kind = low_level.Type.ID
    secret = b"0" * 64  # as long as what our pepper makes of a password
    encoded = low_level.hash_secret(secret, b"1" * 22, 2, 19456, 1, 32, kind)
    count, began, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        assert low_level.verify_secret(encoded, secret, kind)
        count += 1
    return count, time.monotonic() - began, time.process_time() - cpu


# --- the sign-ins ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    count: int
    rate: float
    web_ms: float
    postgres_ms: float
    people_ms: float
    p50_ms: float
    p99_ms: float
    broken: list[str]


class _Api:
    """The app's API."""

    name = "api"

    async def open(self, port: int) -> None:
        pass

    async def sign_in(self, port: int, code: str) -> tuple[bool, float]:
        """Whether it signed in; the seconds that it took."""
        answer = await _http.ask(port, _http.post_json(_API, {"username": code, "password": PASSWORD}))
        return answer.status == 200 and b'"is_authenticated": true' in answer.body, answer.seconds


class _Page:
    """The page's form."""

    name = "page"

    async def open(self, port: int) -> None:
        page = await _http.ask(port, _http.get("/login/"))
        found = _TOKEN.search(page.body)
        assert found, "there is no sign-in page"
        self._token, self._cookie = found[1].decode(), page.cookies

    async def sign_in(self, port: int, code: str) -> tuple[bool, float]:
        form = {"csrfmiddlewaretoken": self._token, "username": code, "password": PASSWORD, "remember": "on"}
        answer = await _http.ask(port, _http.post_form("/login/", form, cookie=self._cookie))
        return answer.status == 302 and b"caplai_session" in answer.head, answer.seconds


_WAYS = ((_Api, 0), (_Page, _LOGINS // 2))


async def _sign_in(site: Site, way, seconds: float, *, first: int) -> Load:
    took: list[float] = []
    failed = 0

    async def visit(n: int) -> None:
        nonlocal failed
        into, lasted = await one.sign_in(site.port, f"{(first + n) % _LOGINS:010}")
        took.append(lasted)
        failed += not into

    one = way()
    await one.open(site.port)
    web, postgres, people = site.web_tree.seconds(), site.database.seconds(), time.process_time()
    count, lasted = await _http.crowd(_AT_ONCE, seconds, visit)
    people = time.process_time() - people
    web, postgres = site.web_tree.seconds() - web, site.database.seconds() - postgres
    centiles = quantiles(took, n=100)
    return Load(
        count,
        count / lasted,
        *(
            1000 * each / count
            for each in (web, postgres, people, centiles[49] * count, centiles[98] * count)
        ),
        broken=[f"{failed} of {count} did not sign in"] if failed else [],
    )


async def _open_pages(site: Site, seconds: float) -> float:
    """Milliseconds of the web server's processor time that the sign-in page takes."""

    async def visit(n: int) -> None:
        assert (await _http.ask(site.port, _http.get("/login/"))).status == 200

    web = site.web_tree.seconds()
    count, _ = await _http.crowd(_AT_ONCE, seconds, visit)
    return 1000 * (site.web_tree.seconds() - web) / count


def _check(site: Site, done: dict[str, Load]) -> list[str]:
    """Each sign-in left a session and a device, and no guess."""
    with psycopg.connect(site.dsn, autocommit=True) as conn:
        sessions, devices, guesses = conn.execute(
            "select (select count(*) from django_session), (select count(*) from device), count(*) from guess"
        ).fetchone()
    count = sum(one.count for one in done.values())
    broken = []
    if not count <= sessions == devices:
        broken.append(f"{count} sign-ins and the warming up left {sessions} sessions and {devices} devices")
    if guesses:
        broken.append(f"{guesses} guesses are still booked")
    return broken
