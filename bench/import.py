"""Import a made-up nation from CSV, against a bare COPY of the same rows (bar.md, `import`).

One PostgreSQL of its own, fsync on, in a temporary folder. The file is made by the generator of
`caplai accounts generate`, outside the timing. The yardstick is COPY, in the order of
the file, of rows that are already in the form in which they are stored, into a table with the same columns, defaults
and constraints, whose indexes are made afterwards. (Beside it: a COPY into the table with its indexes, which at this
size takes much longer.) Then `caplai accounts import` runs as a process on the same server. Each begins after a
checkpoint.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from bench import _measure
from bench._parts import plain_environment
from caplai import processes
from caplai.domain import msisdn
from caplai.local_postgres import LocalPostgres
from caplai.simulator import population

_SAMPLE = 1_000
_BLOCK = 1 << 20


def main(arguments: list[str]) -> int:
    """Run it, print what was measured; status 1 if a row is missing or another one."""
    parser = argparse.ArgumentParser(prog="python -m bench import", description=__doc__)
    parser.add_argument("--accounts", type=int, default=2_000_000)
    parser.add_argument("--with-passwords", type=float, default=0.0, metavar="SHARE", help="from 0 to 1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="caplai-import-") as folder:
        server = LocalPostgres(Path(folder, "postgres"))
        try:
            report = _run(Path(folder), server.ensure_running().dsn, options)
        finally:
            server.stop()
    _measure.show(report, as_json=options.json)
    return 1 if report["broken"] else 0


def _run(folder: Path, dsn: str, options: argparse.Namespace) -> dict[str, object]:
    os.environ |= {"CAPLAI_DATABASE_URL": dsn, "CAPLAI_DATA_DIR": str(folder)}
    processes.setup_django()
    processes.migrate()
    file = folder / "accounts.csv"
    began = time.perf_counter()
    with file.open("wb") as out:
        for block in population.accounts(options.accounts, options.seed, options.with_passwords):
            out.write(block)
    generating = time.perf_counter() - began
    _stored_form(file, folder)

    with psycopg.connect(dsn, autocommit=True) as conn:
        indexed = _bare_copy(conn, folder, indexes_first=True)
        bare = _bare_copy(conn, folder, indexes_first=False)
        conn.execute("checkpoint")
        begun_at = conn.execute("select pg_current_wal_insert_lsn()").fetchone()
        importing, peak, said, status = _import(file, dsn, folder)
        [[wal]] = conn.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", begun_at).fetchall()
        broken = [] if status == 0 else [f"the import ended with status {status}: {said[-500:]}"]
        broken += _compare(conn, folder, options.accounts)
        [[size]] = conn.execute(
            "select pg_total_relation_size('account') + pg_total_relation_size('taken_over_password')"
        ).fetchall()
    return {
        "accounts": options.accounts,
        "file_mb": file.stat().st_size // 10**6,
        "generated_per_second": int(options.accounts / generating),
        "bare_copy_seconds": round(bare, 1),
        "bare_copy_with_indexes_seconds": round(indexed, 1),
        "import_seconds": round(importing, 1),
        "import_per_second": int(options.accounts / importing),
        "ratio": round(importing / bare, 2),
        "peak_rss_mb": peak // 1000,
        "stored_mb": size // 10**6,
        "wal_mb": int(wal) // 10**6,
        "said": said.strip(),
        "broken": broken,
    }


def _rows(file: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """The file's rows as they are to be stored, read in the plainest way."""
    with file.open(newline="") as text:
        rows = csv.reader(text)
        next(rows)
        for code, written, email, state, *hashed in rows:
            phone = msisdn.parse(written)
            assert phone is not None
            yield code, phone, email, state, "".join(hashed) if state != "closed" else ""


def _stored_form(file: Path, folder: Path) -> None:
    """Write what COPY is to read, and a sample to compare with afterwards."""
    with (
        (folder / "account.copy").open("w") as accounts,
        (folder / "hash.copy").open("w") as hashes,
        (folder / "sample.json").open("w") as sample,
    ):
        some = []
        for number, (code, phone, email, state, hashed) in enumerate(_rows(file)):
            accounts.write(f"{code}\t{phone}\t{email}\t{state}\n")
            if hashed:
                hashes.write(f"{code}\t{hashed}\n")
            if number % 10_007 == 0 and len(some) < _SAMPLE:
                some.append((code, phone, email, state, bool(hashed)))
        json.dump(some, sample)


_MADE_AFTERWARDS = """
alter table bare add primary key (code);
create index on bare (phone);
alter table bare_hash add primary key (code);
create index on bare_hash using brin (taken_at)
"""


def _bare_copy(conn: psycopg.Connection, folder: Path, *, indexes_first: bool) -> float:
    without = "" if indexes_first else "excluding indexes"
    conn.execute(f"create table bare (like account including all {without})")
    conn.execute(f"create table bare_hash (like taken_over_password including all {without})")
    conn.execute("set maintenance_work_mem = '128MB'")  # as the import has
    conn.execute("checkpoint")
    began = time.perf_counter()
    with conn.transaction():
        for command, name in (
            ("copy bare (code, phone, email, state) from stdin", "account.copy"),
            ("copy bare_hash (code, hash) from stdin", "hash.copy"),
        ):
            with (folder / name).open("rb") as rows, conn.cursor().copy(command) as copy:
                while block := rows.read(_BLOCK):
                    copy.write(block)
    if not indexes_first:
        conn.execute(_MADE_AFTERWARDS)
    seconds = time.perf_counter() - began
    for ours, bare in (("account", "bare"), ("taken_over_password", "bare_hash")):
        assert _indexes(conn, ours) == _indexes(conn, bare), "the yardstick has other indexes"
    conn.execute("drop table bare, bare_hash")
    return seconds


def _indexes(conn: psycopg.Connection, table: str) -> list[str]:
    """What is indexed, and how."""
    found = conn.execute("select indexdef from pg_indexes where tablename = %s", [table]).fetchall()
    return sorted(("unique " if "UNIQUE" in each else "") + each.partition(" USING ")[2] for (each,) in found)


def _import(file: Path, dsn: str, folder: Path) -> tuple[float, int, str, int]:
    """Seconds, peak memory in kB, what it said, its exit status."""
    environment = {**plain_environment(), "CAPLAI_DATABASE_URL": dsn, "CAPLAI_DATA_DIR": str(folder)}
    log = folder / "import.log"
    with log.open("wb") as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "caplai", "accounts", "import", str(file)],
            env=environment,
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    return seconds, usage.ru_maxrss, log.read_text("utf-8", "replace"), process.returncode


def _compare(conn: psycopg.Connection, folder: Path, count: int) -> Iterator[str]:
    [[rows]] = conn.execute("select count(*) from account").fetchall()
    if rows != count:
        yield f"{rows} accounts instead of {count}"
    [[hashes]] = conn.execute("select count(*) from taken_over_password").fetchall()
    with (folder / "hash.copy").open() as lines:
        expected = sum(1 for _ in lines)
    if hashes != expected:
        yield f"{hashes} password hashes instead of {expected}"
    wrong = 0
    for code, phone, email, state, hashed in json.loads((folder / "sample.json").read_text()):
        found = conn.execute(
            "select phone, email, state, exists (select from taken_over_password t where t.code = a.code)"
            " from account a where code = %s",
            [code],
        ).fetchone()
        wrong += found != (phone, email, state, hashed)
    if wrong:
        yield f"{wrong} accounts of the sample are not as the file has them"
