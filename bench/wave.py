"""A nation's wave: re-issues end to end, phone to SMSC to engine to PostgreSQL (fsync on) and back to the phone.

Three parties on one machine: phones with their carrier (bench/_crowd.py, the simulator's SMSC on a real socket),
`caplai engine`, and an embedded PostgreSQL as the product configures it, each in processes of their own. With
`--engines 2` a second engine decides, too, for the link that the first holds, as with `caplai up` and CAPLAI_ENGINES=2.
The load is open: texts come when they are due, whether or not the ones before are answered, and a reply's time counts
from when its text was due. Citizens are drawn as in life: most ask once, a few again and again, 5 % of the texts are
malformed, 3 % come from the wrong phone.

In the end the store must agree with the phones (each text stored once, decided, answered once or silenced), and a
sample of the passwords is tried at `caplai web`. Exit status: 0 all of that holds, 1 something does not.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from bench import _measure
from bench._crowd import Mix, Options, phone_of
from bench._parts import Part, plain_environment
from bench._proc import Tree
from caplai import processes
from caplai.local_postgres import LocalPostgres

_TRIED = 20
"""Passwords of the sample that are tried at the web server."""
_LINK = {
    "name": "carrier",
    "host": "127.0.0.1",
    "password": "secret",
    "window": 1000,
    "enquire_link": 30,
}
_ROWS_A_CHUNK = 500_000


def main(arguments: list[str]) -> int:
    parser = parser_of("wave", __doc__)
    parser.add_argument("--rate", default="max", help="texts a second, or max: what is answered (max)")
    parser.add_argument("--profile", type=Path, help="py-spy's flame data of the engine, to this file")
    parser.add_argument(
        "--statements", action="store_true", help="what each statement cost (costs some itself)"
    )
    options = parser.parse_args(arguments)
    rate = 0.0 if options.rate == "max" else float(options.rate)
    with world(options, "wave", statements=options.statements) as it:
        report = it.wave(texts(options, Mix(), rate), profile=options.profile)
    _measure.show(report, as_json=options.json)
    return 1 if report["broken"] else 0


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every wave has."""
    assert description is not None
    parser = argparse.ArgumentParser(prog=f"python -m bench {name}", description=description.splitlines()[0])
    parser.add_argument("--accounts", type=int, default=2_000_000, help="citizens in the store (2,000,000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--engines", type=int, default=1, help="on one database (1)")
    parser.add_argument("--seed", type=int, default=2021, help="of what is texted (2021)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--keep", type=Path, help="keep the database in this folder, and take it if it is there"
    )
    return parser


def texts(options: argparse.Namespace, mix: Mix, rate: float) -> Options:
    """What the phones are to do: `rate` texts a second, 0 for as many as are answered."""
    return Options(options.accounts, rate, options.seconds, options.seed, **asdict(mix))


@contextlib.contextmanager
def world(options: argparse.Namespace, name: str, *, statements: bool = False) -> Iterator["World"]:
    """The world that the options ask for."""
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=f"caplai-{name}-"))
        )
        folder.mkdir(parents=True, exist_ok=True)
        yield stack.enter_context(
            World(folder, options.accounts, engines=options.engines, statements=statements)
        )


def add_accounts(conn: psycopg.Connection[Any], citizens: int) -> None:
    """Approved accounts 0000000000, 0000000001, …, two of them on each phone (bench/_crowd.py, `phone_of`)."""
    assert phone_of(7) == "84900000003"
    for first in range(0, citizens, _ROWS_A_CHUNK):
        conn.execute(
            "insert into account (code, phone, state) select lpad(n::text, 10, '0'),"
            " '+849' || lpad((n / 2)::text, 8, '0'), 'approved' from generate_series(%s::int, %s::int) n",
            [first, min(first + _ROWS_A_CHUNK, citizens) - 1],
        )
    conn.execute("vacuum analyze account")


@dataclass
class Counts:
    """What the store says became of the texts."""

    stored: int
    undecided: int
    silenced: int
    issued: int
    joined: int
    replies: int
    unsent: int
    resent: int


class World:
    """A database with that many accounts in a folder, with what a wave needs. `with World(…) as world`."""

    def __init__(self, folder: Path, accounts: int, *, engines: int = 1, statements: bool = False) -> None:
        self.folder = folder
        self.accounts = accounts
        self.engines = engines
        self.statements = statements
        settings = {"shared_preload_libraries": "pg_stat_statements"} if statements else {}
        self.server = LocalPostgres(folder / "postgres", settings=settings)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "World":
        self.dsn = self.server.ensure_running().dsn
        self._stack.callback(self.server.stop)
        try:
            os.environ |= {"CAPLAI_DATABASE_URL": self.dsn, "CAPLAI_DATA_DIR": str(self.folder)}
            processes.setup_django()
            processes.migrate()
            self.conn = self._stack.enter_context(psycopg.connect(self.dsn, autocommit=True))
            self._fill()
            if self.statements:
                self.conn.execute("create extension if not exists pg_stat_statements")
                self.conn.execute("select pg_stat_statements_reset()")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _fill(self) -> None:
        row = self.conn.execute("select count(*) from account").fetchone()
        if row != (self.accounts,):
            if row != (0,):
                raise SystemExit(f"{self.folder} holds {row and row[0]} accounts, not {self.accounts}")
            add_accounts(self.conn, self.accounts)

    def clear(self) -> None:
        """Forget what happened before."""
        self.conn.execute(
            "truncate inbox, outbox, reissue_case, segment, receipt, guess, link_session, process restart identity"
        )
        self.conn.execute("checkpoint")

    def environment(self, port: int, **more: str) -> dict[str, str]:
        """Of our processes, with one link to the carrier that listens there."""
        return {
            **plain_environment(),
            "CAPLAI_DATABASE_URL": self.dsn,
            "CAPLAI_DATA_DIR": str(self.folder),
            "CAPLAI_LINKS": json.dumps([_LINK | {"port": port}]),
            "CAPLAI_SIGNIN__NETWORK_FAILURES": "1000000",
            **more,
        }

    def wave(self, options: Options, profile: Path | None = None) -> dict[str, Any]:
        """One wave on this world; the report."""
        machine = _measure.machine()
        self.clear()
        with _crowd(options) as (crowd, port):
            engines = {}
            for name in ["engine", *(f"engine {number}" for number in range(2, self.engines + 1))]:
                engines[name] = engine = Part(name, ["engine"], self.environment(port), self.folder)
                self._stack.callback(engine.kill)
                self._until_up(len(engines))
            first = engines["engine"].process.pid  # it holds the link
            spy = _profile(first, options.seconds, profile) if profile else None
            before = _measure.work(self.conn)
            pids = {name: engine.process.pid for name, engine in engines.items()}
            pids |= {"phones": crowd.pid, "database": self._postmaster()}
            used = {name: Tree(pid).seconds() for name, pid in pids.items()}
            _say(crowd)
            memory = self._watch(crowd, pids, options.seconds)
            seen = json.loads(_line(crowd))
            used = {name: Tree(pid).seconds() - used[name] for name, pid in pids.items()}
            time.sleep(1.5)  # the statistics come late
            done = _measure.work(self.conn).since(before)
            counts = self._counts()
            if spy:
                spy.wait()
            for engine in reversed(engines.values()):
                engine.stop()
            _say(crowd)
        sample = seen.pop("sample")
        good = self._try(sample)
        report = self._report(options, seen, counts, used, done, memory)
        report["passwords_tried"], report["passwords_that_sign_in"] = min(_TRIED, len(sample)), good
        report["machine"] = machine
        if self.statements:
            report["statements"] = self._statements(max(1, seen["replies"]))
        report["broken"] = self._broken(options, seen, counts, report)
        return report

    def _until_up(self, engines: int) -> None:
        """The first has bound, and each says that it lives."""
        there = "select exists (select from link_session), count(*) from process where kind = 'engine'"
        end = time.monotonic() + 60
        while self.conn.execute(there).fetchone() != (True, engines):
            if time.monotonic() > end:
                raise SystemExit("the engines are not up, or none has bound, after a minute")
            time.sleep(0.1)
        time.sleep(1)  # it has its row; its first claims are behind it then

    def _postmaster(self) -> int:
        pid = self.server.status().pid
        assert pid is not None
        return pid

    def _watch(
        self, crowd: subprocess.Popen[str], pids: Mapping[str, int], seconds: float
    ) -> dict[str, float]:
        """The most memory of each, in MB, while the wave lasts."""
        most = dict.fromkeys(pids, 0.0)
        end = time.monotonic() + seconds
        while time.monotonic() < end and crowd.poll() is None:
            time.sleep(min(5.0, max(0.0, end - time.monotonic())))
            for name, pid in pids.items():
                with contextlib.suppress(OSError):
                    most[name] = max(most[name], Tree(pid).memory().pss / 1e6)
        return {name: round(value) for name, value in most.items()}

    def _counts(self) -> Counts:
        [inbox] = self.conn.execute(
            "select count(*), count(*) filter (where outcome is null), count(*) filter (where outcome = 'silenced'),"
            " count(*) filter (where outcome = 'issued'), count(*) filter (where outcome = 'joined') from inbox"
        ).fetchall()
        [outbox] = self.conn.execute(
            "select count(*), count(*) filter (where state <> 'sent'), coalesce(sum(attempts - 1), 0) from outbox"
        ).fetchall()
        return Counts(*inbox, *outbox)

    def _report(
        self,
        options: Options,
        seen: Mapping[str, Any],
        counts: Counts,
        used: Mapping[str, float],
        done: _measure.Work,
        memory: Mapping[str, float],
    ) -> dict[str, Any]:
        seconds, waits = seen["seconds"], seen["waits"]
        replies = max(1, seen["replies"])
        owed = seen["texts"] - counts.silenced
        milliseconds = [round(wait * 1000) for wait in waits] or [None] * 4
        return {
            "accounts": options.accounts,
            "engines": self.engines,
            "seconds": round(seconds, 1),
            "offered_per_second": round(seen["texts"] / seconds, 1),
            "completed_per_second": round(seen["replies_in_time"] / seconds, 1),
            "reissues_per_second": round((counts.issued + counts.joined) / seconds, 1),
            "lost": owed - seen["replies"],
            "p50_ms": milliseconds[0],
            "p90_ms": milliseconds[1],
            "p99_ms": milliseconds[2],
            "longest_ms": milliseconds[3],
            "cpu_us_per_reply": {name: round(value / replies * 1e6) for name, value in used.items()}
            | {"all": round(sum(used.values()) / replies * 1e6)},
            "cores_used": round(sum(used.values()) / seconds, 2),
            "memory_mb": dict(memory),
            "per_reply": {
                "commits": round(done.commits / replies, 3),
                "rows_inserted": round(done.inserted / replies, 2),
                "rows_updated": round(done.updated / replies, 2),
                "wal_bytes": round(done.wal_bytes / replies),
                "full_pages": round(done.wal_full_pages / replies, 2),
            },
            "load_late_ms": round(seen["late"] * 1000),
            "texts": seen["texts"],
            "store": asdict(counts),
        }

    def _statements(self, replies: int) -> list[str]:
        """The dearest statements, by their time of execution."""
        rows = self.conn.execute(
            "select regexp_replace(left(query, 80), '\\s+', ' ', 'g'), total_exec_time * 1000 / %(replies)s,"
            " calls, rows / calls, wal_bytes / %(replies)s"
            " from pg_stat_statements order by total_exec_time desc limit 20",
            {"replies": replies},
        ).fetchall()
        return [
            f"{us:.1f} us and {wal:.0f} bytes of WAL a reply, {calls} calls of {rows} rows: {query}"
            for query, us, calls, rows, wal in rows
        ]

    def _broken(
        self, options: Options, seen: Mapping[str, Any], counts: Counts, report: Mapping[str, Any]
    ) -> list[str]:
        """What should not be."""
        broken = []
        if counts.stored != seen["texts"]:
            broken.append(f"{seen['texts']} texts, {counts.stored} stored")
        if counts.undecided or counts.unsent:
            broken.append(f"{counts.undecided} undecided, {counts.unsent} replies not sent")
        if counts.replies != seen["texts"] - counts.silenced:
            broken.append(f"{counts.replies} replies written for {seen['texts'] - counts.silenced} texts")
        if report["lost"] > 0 or seen["failed"]:
            broken.append(f"{report['lost']} replies lost, {seen['failed']} texts given up by the carrier")
        if report["lost"] < -counts.resent:
            broken.append(f"{-report['lost']} replies too many, and only {counts.resent} were sent again")
        if report["passwords_that_sign_in"] != report["passwords_tried"]:
            broken.append("a password of the sample does not sign in")
        if options.malformed and not report["passwords_tried"]:
            broken.append("no password came")
        return broken

    def _try(self, sample: Mapping[str, str]) -> int:
        """How many of the passwords lead to the page where one chooses one's own."""
        if not sample:
            return 0
        port = processes.free_port("127.0.0.1", 0)
        web = Part("web", ["web", "--quiet"], self.environment(1, CAPLAI_PORT=str(port)), self.folder)
        try:
            if not processes.wait_for_port("127.0.0.1", port, 30):
                raise SystemExit(f"the web server has not started:\n{web.says()}")
            url = f"{processes.url('127.0.0.1', port)}_allauth/app/v1/auth/login"
            return sum(_signs_in(url, *pair) for pair in list(sample.items())[:_TRIED])
        finally:
            web.stop()


def _signs_in(url: str, code: str, password: str) -> bool:
    body = json.dumps({"username": code, "password": password}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as answer:
        with answer:  # 401 with a token: proved, and a password of one's own is still to be chosen
            return answer.code == 401 and "session_token" in json.load(answer).get("meta", {})
    return False


@contextlib.contextmanager
def _crowd(options: Options) -> Iterator[tuple[subprocess.Popen[str], int]]:
    crowd = subprocess.Popen(
        [sys.executable, "-m", "bench._crowd", json.dumps(asdict(options))],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield crowd, json.loads(_line(crowd))["port"]
        crowd.wait(30)
    finally:
        crowd.kill()
        crowd.wait()


def _say(crowd: subprocess.Popen[str]) -> None:
    assert crowd.stdin
    crowd.stdin.write("\n")
    crowd.stdin.flush()


def _line(crowd: subprocess.Popen[str]) -> str:
    assert crowd.stdout
    line = crowd.stdout.readline()
    if not line:
        raise SystemExit("the phones have ended by themselves")
    return line


def _profile(pid: int, seconds: float, to: Path) -> subprocess.Popen[bytes]:
    """py-spy beside it (not a dependency of ours: `pip install py-spy`)."""
    return subprocess.Popen(
        [
            "py-spy",
            "record",
            "-p",
            str(pid),
            "-d",
            str(int(seconds)),
            "-f",
            "raw",
            "-g",
            "-r",
            "250",
            "-o",
            str(to),
        ],
        stdout=subprocess.DEVNULL,
    )
