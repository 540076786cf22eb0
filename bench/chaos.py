"""Kill and cut at random under load, then check the ledger (bar.md, "Nothing lost, nothing twice").

A simulated carrier with its phones (never killed) offers an open load of texts to two `caplai engine`
processes on one PostgreSQL with fsync on. At moments drawn from a seed, an engine or the database server
is killed with SIGKILL, or the carrier cuts every connection. In the end everything is brought back, and:

- each message that the carrier got an OK for is in the inbox exactly once, with one outcome;
- each message that is to be answered has one reply, which was sent; the phone got it, at least once;
- whatever a phone got for an account that is its own carries one and the same password for one case;
- nobody got a password of an account that is not the phone's; no account has two open cases;
- the passwords of a sample sign in.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import psycopg

from caplai import processes
from caplai.local_postgres import LocalPostgres
from caplai.simulator import Simulator, SimulatorConfig
from caplai.simulator.phones import State
from caplai.simulator.smsc import Rules

CITIZENS = 2000
PASSWORD = re.compile(r"Tai khoan: (\d{10})/Mat khau: (\S+)\. Dung")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills and cuts, all together (200)")
    parser.add_argument("--rate", type=int, default=60, help="texts a second (60)")
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between kills, on average (1.5)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.randrange(10**6)
    with tempfile.TemporaryDirectory(prefix="caplai-chaos-") as folder:
        report = asyncio.run(_Run(Path(folder), options).play())
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for name, value in report.items():
            print(f"{name:<28} {value}")
    return 1 if report["broken"] else 0


class _Run:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.draw = random.Random(options.seed)
        self.server = LocalPostgres(folder / "postgres")
        self.engines: list[subprocess.Popen[bytes]] = []
        self.killed: Counter[str] = Counter()
        self.sent: list[tuple[str, str, object]] = []
        """Every text: its phone, its words (each one once), and the simulator's message."""
        self.got: dict[str, list[str]] = defaultdict(list)
        self.done = False

    async def play(self) -> dict[str, object]:
        dsn = await asyncio.to_thread(self._prepare)
        rules = Rules(retries=10_000, pause=0.3, longest_pause=2.0)
        async with Simulator(SimulatorConfig(rules=rules)) as simulator:
            simulator.phones.subscribe(lambda message: self._hear(message))
            link = {"name": "carrier", "host": "127.0.0.1", "port": simulator.smpp_port, "password": "secret"}
            self.environment = {**os.environ, "CAPLAI_LINKS": json.dumps([link | {"submit_timeout": 3}])}
            try:
                for n in range(2):
                    self.engines.append(self._start_engine(n))
                started = time.monotonic()
                load = asyncio.create_task(self._load(simulator))
                await self._kill_and_cut(simulator)
                self.done = True
                await load
                seconds = time.monotonic() - started
                await asyncio.to_thread(self.server.ensure_running)
                settled = await self._settle(dsn, simulator)
                broken = await asyncio.to_thread(self._check, dsn)
                if not settled:
                    broken.append("messages or replies still wait, two minutes after the last kill")
                signed_in = await asyncio.to_thread(self._sign_in, broken)
            finally:
                for engine in self.engines:
                    engine.kill()
                    engine.wait()
                self.server.stop()
        return {
            "seed": self.options.seed,
            "seconds": round(seconds, 1),
            "texts": len(self.sent),
            "acknowledged": sum(message.state is State.SENT for _, _, message in self.sent),
            "replies_at_phones": sum(map(len, self.got.values())),
            "killed": dict(self.killed),
            "signed_in_of_sample": signed_in,
            "broken": broken,
        }

    def _prepare(self) -> str:
        dsn = self.server.ensure_running().dsn
        os.environ |= {"CAPLAI_DATABASE_URL": dsn, "CAPLAI_DATA_DIR": str(self.folder)}
        processes.setup_django()
        processes.migrate()
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(
                "insert into account (code, phone, state) select lpad(n::text, 10, '0'),"
                " '+8490' || lpad((n / 2)::text, 7, '0'), 'approved' from generate_series(0, %s) n"
                % (CITIZENS - 1)
            )
        return dsn

    def _start_engine(self, number: int) -> subprocess.Popen[bytes]:
        log = (self.folder / f"engine-{number}.log").open("ab")
        return subprocess.Popen(
            [sys.executable, "-m", "caplai", "engine", "--quiet"],
            env=self.environment,
            stdout=log,
            stderr=log,
        )

    def _hear(self, message) -> None:
        if message.incoming:
            self.got[message.phone].append(message.text)

    async def _load(self, simulator: Simulator) -> None:
        """Texts at their times, whether or not anybody answers: most good, some malformed or from another phone."""
        began, count = time.monotonic(), 0
        while not self.done:
            while count < (time.monotonic() - began) * self.options.rate:
                count += 1
                citizen = self.draw.randrange(CITIZENS)
                phone, words = f"8490{citizen // 2:07}", f"BH MK {citizen:010} lan {count % 10_000}"
                kind = self.draw.random()
                if kind < 0.05:
                    words = f"BH MK {citizen:09} lan {count % 10_000}"
                elif kind < 0.08:
                    phone = f"8491{count:07}"
                message = simulator.smsc.send_mo(phone, "8079", words)
                self.sent.append((phone, words, message))
            await asyncio.sleep(0.02)

    async def _kill_and_cut(self, simulator: Simulator) -> None:
        await asyncio.sleep(4)
        for _ in range(self.options.kills):
            await asyncio.sleep(self.draw.expovariate(1 / self.options.pause))
            what = self.draw.choices(["engine", "database", "links"], [5, 3, 2])[0]
            self.killed[what] += 1
            if what == "engine":
                number = self.draw.randrange(len(self.engines))
                self.engines[number].kill()
                await asyncio.to_thread(self.engines[number].wait)
                self.engines[number] = self._start_engine(number)
            elif what == "links":
                simulator.smsc.cut()
            else:
                status = await asyncio.to_thread(self.server.status)
                if status.pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(status.pid, signal.SIGKILL)
                await asyncio.sleep(self.draw.random())
                await asyncio.to_thread(self.server.ensure_running)
            for number, engine in enumerate(self.engines):
                if (
                    engine.poll() is not None
                ):  # it gave up by itself, as it may when its start met no database
                    self.killed["engine, by itself"] += 1
                    self.engines[number] = self._start_engine(number)

    async def _settle(self, dsn: str, simulator: Simulator) -> bool:
        """Wait until the carrier has got rid of everything, and every message and reply has its end."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            await asyncio.sleep(1)
            for number, engine in enumerate(self.engines):
                if engine.poll() is not None:
                    self.engines[number] = self._start_engine(number)
            with psycopg.connect(dsn, autocommit=True) as conn:
                row = conn.execute(
                    "select (select count(*) from inbox where outcome is null)"
                    " + (select count(*) from outbox where state in ('ready', 'claimed'))"
                ).fetchone()
            if simulator.smsc.waiting == 0 and row is not None and row[0] == 0:
                return True
        return False

    def _check(self, dsn: str) -> list[str]:
        broken: list[str] = []
        with psycopg.connect(dsn, autocommit=True) as conn:
            stored = Counter(
                dict(conn.execute("select text || '|' || source, count(*) from inbox group by 1").fetchall())
            )
            acknowledged = {
                f"{words}|{phone}" for phone, words, message in self.sent if message.state is State.SENT
            }
            broken += [
                f"acknowledged and not stored: {key[-7:]}" for key in acknowledged if key not in stored
            ]
            for key in [key for key, n in stored.items() if n > 1]:
                words, source = key.split("|")
                twins = conn.execute(
                    "select i.id, to_char(i.received_at, 'MI:SS.MS'), i.session, i.outcome, s.engine,"
                    " to_char(s.started_at, 'MI:SS.MS'), to_char(s.confirmed_at, 'MI:SS.MS')"
                    " from inbox i left join link_session s on s.id = i.session"
                    " where i.text = %s and i.source = %s order by i.id",
                    [words, source],
                ).fetchall()
                broken.append(
                    f"stored {len(twins)} times (id, at, session, outcome, engine, bound, confirmed): {twins}"
                )
            for says, query in {
                "without an outcome": "select count(*) from inbox where outcome is null",
                "parked": "select count(*) from inbox where error is not null",
                "answered not exactly once": "select count(*) from (select i.id from inbox i left join outbox o"
                " on o.inbox_id = i.id where i.outcome not in ('other_agency', 'silenced') group by i.id"
                " having count(o.id) <> 1) x",
                "silent, yet answered": "select count(*) from inbox i join outbox o on o.inbox_id = i.id"
                " where i.outcome in ('other_agency', 'silenced')",
                "replies not sent": "select count(*) from outbox where state <> 'sent'",
                "accounts with two open cases": "select count(*) from (select account from reissue_case"
                " where ended_at is null group by account having count(*) > 1) x",
                "replies to another phone": "select count(*) from outbox o join account a on a.code = o.account"
                " where '+' || o.destination <> a.phone",
            }.items():
                row = conn.execute(query).fetchone()
                if row is not None and row[0]:
                    broken.append(f"{says}: {row[0]}")
            replies = dict(
                conn.execute(
                    "select destination, count(*) from outbox where state = 'sent' group by 1"
                ).fetchall()
            )
        broken += [
            f"a phone got {len(self.got[phone])} of {count} replies"
            for phone, count in replies.items()
            if len(self.got[phone]) < count
        ]
        self.passwords: dict[str, str] = {}
        for phone, texts in self.got.items():
            for code, password in (
                match.groups() for text in texts for match in [PASSWORD.search(text)] if match
            ):
                if int(code) // 2 != int(phone[4:]) or not phone.startswith("8490"):
                    broken.append("a password went to a phone that is not its account's")
                if self.passwords.setdefault(code, password) != password:
                    broken.append("two passwords for one case")
        return broken

    def _sign_in(self, broken: list[str]) -> str:
        """Whether the passwords that a sample of phones got are those that sign in."""
        from django.conf import settings
        from django.db import connection

        from caplai.service.credentials import Outcome, check
        from caplai.signin.backend import rules

        sample = self.draw.sample(sorted(self.passwords.items()), min(50, len(self.passwords)))
        assert settings.configured
        connection.close()
        good = sum(
            check(code, password, device=None, network=f"10.0.0.{n}", rules=rules()).outcome is Outcome.ISSUED
            for n, (code, password) in enumerate(sample)
        )
        if good < len(sample):
            broken.append(f"{len(sample) - good} of {len(sample)} passwords do not sign in")
        return f"{good} of {len(sample)}"
