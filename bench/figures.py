"""The agency's figures from a history with the totals that it published (bar.md, `figures`).

By 18/10/2021 21,635,070 accounts were approved and 5,683,394 re-issues had been given by the free way, each an OTP
and a password; 1,791,924 of them from 29/9 to 15/10, and 597,308 a month in the three months before. Single phones
asked 47, 45 and 43 times in one month. `--scale 1` is all of it; below, every number but these shrinks alike.

The history is made by set-based SQL on a server of its own; then all rollups are built, the figures are read in this
process and by the command line, and what is printed is checked against the totals, and against plain counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psycopg

from bench import _measure
from bench._parts import plain_environment
from caplai.local_postgres import LocalPostgres

HEAVIEST = (47, 45, 43)
"""How often single phones asked in October 2021; a tail of others follows."""
FIRST, LAST = date(2021, 1, 1), date(2021, 10, 18)
PERIOD = date(2021, 9, 29), date(2021, 10, 15)


@dataclass(frozen=True)
class Totals:
    """The published totals, at a scale. A month's is rounded first, so that the period is three months' exactly."""

    accounts: int
    reissues: int
    month: int

    @classmethod
    def at(cls, scale: float) -> "Totals":
        return cls(round(21_635_070 * scale), round(5_683_394 * scale), round(597_308 * scale))

    @property
    def period(self) -> int:
        return 3 * self.month

    def stretches(self) -> list[tuple[str, str, int]]:
        """Each from midnight to midnight in Vietnam, with its re-issues, in the order of time."""
        # The last three days go on as the seventeen before; what is left came before.
        after = round(self.period / 17 * 3)
        two_days = round(self.period * 2 / 17)
        before = self.reissues - 2 * self.period - after
        return [
            ("2021-01-01", "2021-06-29", before),
            ("2021-06-29", "2021-07-29", self.month),
            ("2021-07-29", "2021-08-29", self.month),
            ("2021-08-29", "2021-09-29", self.month),
            ("2021-09-29", "2021-10-01", two_days),
            ("2021-10-01", "2021-10-16", self.period - two_days),
            ("2021-10-16", "2021-10-19", after),
        ]

    def heavy(self) -> list[int]:
        """How often each of the heaviest phones asked from 1/10 to 15/10."""
        tail = [max(6, 42 - n // 2) for n in range(self.month // 300)]
        return [*HEAVIEST, *tail]


_ACCOUNTS = """
insert into account (code, phone, state)
select lpad(n::text, 10, '0'), '+849' || lpad(n::text, 8, '0'), 'approved' from generate_series(1, %(accounts)s::int) n
"""

# The re-issues of a stretch, evenly over its time, with who asked: the heaviest phones' own, spread evenly among the
# rest; most of these by people who ask once, one in six by a few who come back. Same arguments, same history.
_PLAN = """
create temp table plan on commit drop as
with heavy as (
    select (row_number() over (order by hashint8extended(account * 1000 + time, 5)) * %(count)s::bigint
            / greatest(%(heavy)s::int, 1))::int as n, account
    from unnest(%(times)s::int[]) with ordinality t (times, account), generate_series(1, t.times) time
), asked as (
    select n, %(begin)s::timestamp at time zone 'Asia/Ho_Chi_Minh'
        + (%(end)s::timestamp - %(begin)s::timestamp) * ((n - 0.5) / %(count)s) as at,
        (hashint8extended(n, %(seed)s) & 9223372036854775807) as chance
    from generate_series(1, %(count)s::int) n
)
select gen_random_uuid() as id, at, chance, lpad(coalesce(heavy.account, %(reserved)s + 1
    + case when chance %% 6 = 0 then (chance / 6) %% greatest(%(accounts)s / 100, 1)
           else (chance / 6) %% (%(accounts)s - %(reserved)s) end)::text, 10, '0') as account
from asked left join heavy using (n) order by n
"""
_CASES = """
insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at, expires_at,
    ended_at, ended_as)
select account, id, '+849' || right(account, 8), 'web', 'k', 1, 6, '0123456789', 1, at, at + interval '24 hours',
    case when chance % 10 < 7 then at + interval '1 s' * (20 + chance % 1009) else at + interval '24 hours' end,
    case when chance % 10 < 7 then 'used' else 'expired' end
from plan order by at
"""
# An OTP half a minute before, but on the same day.
_TEXTS = """
insert into outbox (created_at, kind, wording, account, case_id, link, sender, destination, state, attempts, settled_at)
select made, kind, 1, account, case_id, link, 'VssID', '849' || right(account, 8), 'sent', 1,
    made + interval '1 ms' * (300 + chance % 4001)
from (
    select greatest(at - interval '30 s', date_trunc('day', at, 'Asia/Ho_Chi_Minh')) as made, 'otp' as kind, account,
        null::uuid as case_id, chance, (array['viettel', 'mobifone', 'vinaphone'])[1 + chance % 3] as link from plan
    union all
    select at, 'password', account, id, chance, (array['viettel', 'mobifone', 'vinaphone'])[1 + chance % 3] from plan
) t order by made
"""


def make_history(conn: psycopg.Connection, totals: Totals) -> None:
    """Fill an empty store."""
    conn.execute(_ACCOUNTS, {"accounts": totals.accounts})
    heavy = totals.heavy()
    for seed, (begin, end, count) in enumerate(totals.stretches()):
        times = heavy if begin == "2021-10-01" else []
        assert sum(times) <= count
        with conn.transaction():
            conn.execute(
                _PLAN,
                {
                    "begin": begin,
                    "end": end,
                    "count": count,
                    "seed": seed,
                    "times": times,
                    "heavy": sum(times),
                }
                | {"accounts": totals.accounts, "reserved": len(heavy)},
            )
            conn.execute(_CASES)
            conn.execute(_TEXTS)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench figures", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.05, help="of the published totals (0.05)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.scale < 1e-4:
        parser.error("below 0.0001 there is no room for those who asked most")
    with tempfile.TemporaryDirectory(prefix="caplai-figures-") as folder:
        report = run(Path(folder), Totals.at(options.scale))
    report = {"scale": options.scale, **report}
    _measure.show(report, as_json=options.json)
    return 1 if report["broken"] else 0


def run(folder: Path, totals: Totals) -> dict[str, Any]:
    server = LocalPostgres(folder / "postgres")
    dsn = server.ensure_running().dsn
    os.environ |= {"CAPLAI_DATABASE_URL": dsn, "CAPLAI_DATA_DIR": str(folder)}
    try:
        from caplai import processes

        processes.setup_django()
        processes.migrate()
        return _figure(folder, totals)
    finally:
        server.stop()


def _figure(folder: Path, totals: Totals) -> dict[str, Any]:
    from caplai.reports import rollups
    from caplai.reports.figures import figures
    from caplai.store.db import connect

    with connect() as conn:
        began = time.monotonic()
        make_history(conn, totals)
        made = time.monotonic() - began
        conn.execute("vacuum (analyze)")
        began = time.monotonic()
        days = rollups.rebuild(conn, None, LAST)
        rebuilt = time.monotonic() - began
        [[messages]] = conn.execute("select count(*) from outbox").fetchall()
        [[size]] = conn.execute(
            "select sum(pg_total_relation_size(oid)) from pg_class where relname like 'figures%' and relkind = 'r'"
        ).fetchall()
        seconds = {}
        found = {}
        for name, (first, last) in {"year": (FIRST, LAST), "period": PERIOD}.items():
            took = []
            for _ in range(5):
                began = time.monotonic()
                found[name] = figures(conn, first, last)
                took.append(time.monotonic() - began)
            seconds[name] = {"first": round(took[0], 3), "best": round(min(took), 3)}
        began = time.monotonic()
        plain = _plain_counts(conn)
        counted = time.monotonic() - began
    began = time.monotonic()
    year, period = (_command(folder, *days_) for days_ in ((FIRST, LAST), PERIOD))
    command = (time.monotonic() - began) / 2
    broken = [
        *_not_printed(year, totals.accounts, 2 * totals.reissues, totals.reissues, "26 % số tài khoản"),
        *_not_printed(period, totals.period, "+200 %", totals.month, *HEAVIEST),
    ]
    mine = {name: (each.reissues, each.people, each.heaviest[0].count) for name, each in found.items()}
    broken += [
        f"{name}: {mine[name]} figures, {plain[name]} counted" for name in mine if mine[name] != plain[name]
    ]
    return {
        "messages": messages,
        "seconds_to_make_the_history": round(made, 1),
        "days": days,
        "seconds_to_rebuild": round(rebuilt, 1),
        "rollups_bytes": int(size),
        "seconds_to_read": seconds,
        "seconds_of_the_command": round(command, 2),
        "seconds_to_count_without_rollups": round(counted, 1),
        "printed": period.splitlines(),
        "broken": broken,
    }


def _plain_counts(conn: psycopg.Connection) -> dict[str, tuple[int, ...]]:
    """Re-issues, people, and the most of one phone in a month, without any rollup."""
    counts = {}
    for name, (first, last) in {"year": (FIRST, LAST), "period": PERIOD}.items():
        [counts[name]] = conn.execute(
            "with c as (select *, opened_at at time zone 'Asia/Ho_Chi_Minh' as at from reissue_case), d as"
            " (select * from c where at >= %s::date and at < %s::date + 1)"
            " select count(*), count(distinct account), (select max(n) from (select count(*) as n from d"
            " group by phone, date_trunc('month', at)) m) from d",
            [first, last],
        ).fetchall()
    return counts


def _command(folder: Path, first: date, last: date) -> str:
    """What `caplai figures` prints."""
    environment = {**plain_environment(), "CAPLAI_DATA_DIR": str(folder), "LC_ALL": "C.UTF-8"}
    environment["CAPLAI_DATABASE_URL"] = os.environ["CAPLAI_DATABASE_URL"]
    words = ["figures", "--from", str(first), "--to", str(last)]
    done = subprocess.run(
        [sys.executable, "-m", "caplai", *words], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def _not_printed(printed: str, *numbers: object) -> list[str]:
    texts = [f"{n:,}".replace(",", ".") if isinstance(n, int) else str(n) for n in numbers]
    return [f"{text} is not printed" for text in texts if text not in printed]
