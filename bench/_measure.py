"""What a database has done, by PostgreSQL's own statistics, on what machine, and how it is told.

(Of processes: bench/_proc.py.)
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg


@dataclass(frozen=True)
class Work:
    """What a database has done since it was made."""

    commits: int
    inserted: int
    updated: int
    wal_bytes: int
    wal_full_pages: int

    def since(self, before: "Work") -> "Work":
        return Work(*(getattr(self, name) - getattr(before, name) for name in _FIELDS))


_FIELDS = ("commits", "inserted", "updated", "wal_bytes", "wal_full_pages")


def work(conn: psycopg.Connection[Any]) -> Work:
    """Needs a connection of its own, which has done nothing for a second: the statistics are reported late."""
    conn.execute("select pg_stat_clear_snapshot()")
    row = conn.execute(
        "select d.xact_commit, d.tup_inserted, d.tup_updated, w.wal_bytes::bigint, w.wal_fpi"
        " from pg_stat_database d, pg_stat_wal w where d.datname = current_database()"
    ).fetchone()
    assert row is not None
    return Work(*row)


def machine() -> dict[str, object]:
    """What a figure should be told with."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9),
        "load_before": round(os.getloadavg()[0], 1),
    }


def show(report: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was measured, as JSON or a line each."""
    if as_json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    for name, value in report.items():
        if isinstance(value, list) and value:
            value = "\n  ".join(["", *value])
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {each}" for key, each in value.items())
        print(f"{name:<32} {value}")
