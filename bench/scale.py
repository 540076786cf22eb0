"""Past one machine: what a reply costs the engine, the database and the carrier, each on a host of its own.

Hosts are network namespaces on a switch (bench/_lan.py): a PostgreSQL with fsync on, a carrier with its phones
(bench/_crowd.py), and one `caplai engine` or two, which share the link (`binds = 2`). All of them share this
machine's cores, so two engines are no faster than one where the cores are the limit: what is measured is the cost
of each part, from which docs/scaling.md reckons what hosts of their own can do.

In the end the store must agree with the phones: each text stored once, decided, answered once or silenced.
Exit status: 0 that holds, 1 it does not.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg

from bench import _apart, _measure
from bench._crowd import Mix, Options
from bench._lan import Host, Lan
from bench._parts import Part, plain_environment
from bench._proc import Tree, seconds
from bench.wave import add_accounts
from caplai import processes
from caplai.local_postgres import LocalPostgres

_PATIENCE = 60.0
_FLOW = ("inbox", "outbox", "reissue_case", "segment", "receipt", "guess", "link_session")
_BROKEN = {
    "undecided": "select count(*) from inbox where outcome is null",
    "answered not exactly once": "select count(*) from (select i.id from inbox i left join outbox o"
    " on o.inbox_id = i.id where i.outcome not in ('silenced', 'other_agency') group by i.id"
    " having count(o.id) <> 1) x",
    "replies not sent": "select count(*) from outbox where state <> 'sent'",
    "accounts with two open cases": "select count(*) from (select from reissue_case where ended_at is null"
    " group by account having count(*) > 1) x",
}


def main(arguments: list[str]) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__.splitlines()[0])
    parser.add_argument("--accounts", type=int, default=500_000, help="citizens in the store (500,000)")
    parser.add_argument(
        "--rate", type=float, default=1000.0, help="texts a second; 0: what is answered (1000)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the two waves (20)")
    parser.add_argument("--seed", type=int, default=2021, help="of what is texted (2021)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        status = _apart.go_apart("bench", ["scale", *arguments], network=True)
    except OSError as error:
        parser.exit(1, f"scale makes hosts of network namespaces: {error}\n")
    if status is not None:
        return status
    with tempfile.TemporaryDirectory(prefix="caplai-scale-") as folder:
        report = _Hosts(Path(folder), options).play()
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _show(report)
    return 1 if report["one_engine"]["broken"] + report["two_engines"]["broken"] else 0


def _show(report: dict[str, Any]) -> None:
    """Both waves beside each other."""
    print(
        f"{report['accounts']:,} accounts; {', '.join(f'{name} {each}' for name, each in report['machine'].items())}\n"
    )
    waves = report["one_engine"], report["two_engines"]
    for name in waves[0]:
        values = [wave[name] for wave in waves]
        if all(isinstance(value, dict) for value in values):
            print(name)
            for inner in {**values[1], **values[0]}:
                print(f"  {inner:<32}" + "".join(f"{value.get(inner, '-')!s:>20}" for value in values))
        else:
            print(f"{name:<34}" + "".join(f"{value!s:>20}" for value in values))


class _Hosts:
    """A database, a carrier and two engines, each on a host of its own."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.machine = _measure.machine()
        lan = Lan()
        self.database, self.carrier = lan.host("database"), lan.host("carrier")
        self.engines = [lan.host("engine1"), lan.host("engine2")]
        hba = folder / "hba.conf"
        hba.write_text("local all caplai peer map=caplai\nhost all caplai 10.79.0.0/24 trust\n", "ascii")
        settings = {"listen_addresses": self.database.address, "hba_file": str(hba)}
        self.server = LocalPostgres(folder / "postgres", settings=settings)

    def play(self) -> dict[str, Any]:
        with self.database.inside():
            dsn = self.server.ensure_running().dsn
        try:
            os.environ |= {"CAPLAI_DATABASE_URL": dsn, "CAPLAI_DATA_DIR": str(self.folder)}
            processes.setup_django()
            processes.migrate()
            with psycopg.connect(dsn, autocommit=True) as self.conn:
                add_accounts(self.conn, self.options.accounts)
                self.conn.execute("create extension pg_walinspect")
                return {
                    "accounts": self.options.accounts,
                    "machine": self.machine,
                    "one_engine": self._wave(self.engines[:1]),
                    "two_engines": self._wave(self.engines),
                }
        finally:
            self.server.stop()

    def _wave(self, hosts: list[Host]) -> dict[str, Any]:
        self.conn.execute(
            f"truncate {', '.join(_FLOW)} restart identity"
        )  # one wave knows nothing of another
        self.conn.execute("vacuum analyze account")
        self.conn.execute("checkpoint")
        with self._phones() as (phones, port), contextlib.ExitStack() as stack:
            parts = {host.name: self._engine(host, port, stack) for host in hosts}
            self._until_bound(len(hosts))
            pids = {name: part.process.pid for name, part in parts.items()} | {"phones": phones.pid}
            before = self._now(pids)
            _say(phones)
            line = phones.stdout.readline()  # type: ignore[union-attr]
            if not line:
                raise SystemExit("the phones have ended by themselves")
            seen = json.loads(line)
            time.sleep(1.5)  # the statistics come late
            after = self._now(pids)
            for part in parts.values():
                part.stop()
            _say(phones)
        replies = max(1, seen["replies"])
        seconds = seen["seconds"]
        octets = {
            host.name: [round((new - old) / replies) for old, new in zip(*pair, strict=True)]
            for host in [self.database, self.carrier, *hosts]
            for pair in [(before["octets"][host.name], after["octets"][host.name])]
        }
        used = {name: after["cpu"][name] - before["cpu"].get(name, 0) for name in after["cpu"]}
        waits = seen["waits"] or [0, 0, 0, 0]
        done = after["work"].since(before["work"])
        return {
            "engines": len(hosts),
            "offered_per_second": round(seen["texts"] / seconds, 1),
            "completed_per_second": round(seen["replies_in_time"] / seconds, 1),
            "p50_ms": round(waits[0] * 1000),
            "p99_ms": round(waits[2] * 1000),
            "texts_by_bind": self._shares(),
            "cpu_us_per_reply": {name: round(value / replies * 1e6, 1) for name, value in used.items()}
            | {"all": round(sum(used.values()) / replies * 1e6, 1)},
            "cores_used": round(sum(used.values()) / (seconds + 1.5), 2),
            "octets_sent_and_received_per_reply": octets,
            "commits_per_reply": round(done.commits / replies, 3),
            "wal_bytes_per_reply": round(done.wal_bytes / replies),
            "wal_bytes_per_reply_of": self._wal_by_table(before["lsn"], after["lsn"], replies),
            "bytes_kept_per_reply": self._kept(replies),
            "texts": seen["texts"],
            "broken": self._broken(seen),
        }  # fmt: skip

    @contextlib.contextmanager
    def _phones(self) -> Iterator[tuple[subprocess.Popen[str], int]]:
        mix, options = Mix(), self.options
        load = Options(
            options.accounts,
            options.rate,
            options.seconds,
            options.seed,
            mix.malformed,
            mix.wrong_phone,
            mix.again,
            self.carrier.address,
        )
        phones = subprocess.Popen(
            [*self.carrier.before, sys.executable, "-m", "bench._crowd", json.dumps(asdict(load))],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert phones.stdout
            yield phones, json.loads(phones.stdout.readline())["port"]
            phones.wait(30)
        finally:
            phones.kill()
            phones.wait()

    def _engine(self, host: Host, port: int, stack: contextlib.ExitStack) -> Part:
        link = {
            "name": "carrier",
            "host": self.carrier.address,
            "port": port,
            "password": "secret",
            "window": 1000,
            "binds": len(self.engines),
        }
        environment = {
            **plain_environment(),
            "CAPLAI_DATABASE_URL": f"postgresql://caplai@{self.database.address}/caplai",
            "CAPLAI_DATA_DIR": str(self.folder),
            "CAPLAI_LINKS": json.dumps([link]),
        }
        part = Part(host.name, ["engine"], environment, self.folder, before=host.before)
        stack.callback(part.kill)
        return part

    def _until_bound(self, engines: int) -> None:
        end = time.monotonic() + _PATIENCE
        bound = "select count(distinct engine) from link_session where ended_at is null"
        while self.conn.execute(bound).fetchone() != (engines,):
            if time.monotonic() > end:
                raise SystemExit("the engines have not bound within a minute")
            time.sleep(0.1)
        time.sleep(1)  # it has its row; its first claims are behind it then

    def _now(self, pids: dict[str, int]) -> dict[str, Any]:
        """Processor time by part, octets by host, what the database has done, and where its WAL stands."""
        cpu = Counter({name: Tree(pid).seconds() for name, pid in pids.items()})
        postmaster = self.server.status().pid
        assert postmaster is not None
        for pid in Tree(postmaster).pids():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
                # Its main process has the time of those that have ended, client backends most of all.
                other = title.startswith("postgres: ") and not title.startswith("postgres: caplai ")
                cpu["database, beside" if other else "database, sessions"] += seconds(pid)
        row = self.conn.execute("select pg_current_wal_insert_lsn()").fetchone()
        assert row is not None
        octets = {host.name: host.octets for host in (self.database, self.carrier, *self.engines)}
        return {"cpu": cpu, "octets": octets, "work": _measure.work(self.conn), "lsn": row[0]}

    def _shares(self) -> dict[str, float]:
        """What part of the texts each bind has brought."""
        rows = self.conn.execute(
            "select session::text, count(*) / sum(count(*)) over () from inbox group by session order by session"
        ).fetchall()
        return {f"bind {number}": round(float(part), 3) for number, (_, part) in enumerate(rows, 1)}

    def _wal_by_table(self, begin: str, end: str, replies: int) -> dict[str, int] | str:
        """What changes of each table and its indexes take in the WAL, and full pages; the rest is headers."""
        try:
            rows = self.conn.execute(
                "select coalesce(t.relname, c.relname, '(other)'), sum(block_data_length), sum(block_fpi_length),"
                " sum(record_length / greatest(1, blocks)) from ("
                "  select *, count(*) over (partition by start_lsn) as blocks from pg_get_wal_block_info(%s, %s)) b"
                " left join pg_class c on c.relfilenode = b.relfilenode"
                " left join pg_index i on i.indexrelid = c.oid left join pg_class t on t.oid = i.indrelid"
                " group by 1 order by 4 desc",
                [begin, end],
            ).fetchall()
        except psycopg.Error as error:  # a checkpoint has recycled its beginning
            return f"not to be had: {type(error).__name__}"
        found = {name: round(float(total) / replies) for name, _, _, total in rows if total / replies >= 1}
        return found | {
            "(of these, full pages)": round(sum(float(pages) for _, _, pages, _ in rows) / replies)
        }

    def _kept(self, replies: int) -> dict[str, int]:
        """Bytes of the flow's tables with their indexes, as they stand after the wave."""
        rows = self.conn.execute(
            "select name, pg_total_relation_size(name::regclass) from unnest(%s::text[]) as name",
            [list(_FLOW)],
        ).fetchall()
        sizes = {name: round(size / replies) for name, size in rows if size / replies >= 1}
        return sizes | {"all": sum(sizes.values())}

    def _broken(self, seen: dict[str, Any]) -> list[str]:
        broken = []
        for says, query in _BROKEN.items():
            if (row := self.conn.execute(query).fetchone()) != (0,):
                broken.append(f"{says}: {row and row[0]}")
        [(stored, silenced)] = self.conn.execute(
            "select count(*), count(*) filter (where outcome = 'silenced') from inbox"
        ).fetchall()
        if stored != seen["texts"]:
            broken.append(f"{seen['texts']} texts, {stored} stored")
        if seen["failed"] or seen["replies"] < seen["texts"] - silenced:
            broken.append(
                f"{seen['replies']} replies to {seen['texts'] - silenced} texts, {seen['failed']} given up"
            )
        return broken


def _say(phones: subprocess.Popen[str]) -> None:
    assert phones.stdin
    phones.stdin.write("\n")
    phones.stdin.flush()
