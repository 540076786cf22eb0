"""What processes and the database used, read from the kernel and from PostgreSQL's own statistics."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process with all its threads, and of its children that have ended (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def memory_mb(pid: int) -> float:
    """Proportional set size in MB (10^6): pages that several processes share count in parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text("utf-8").split()
        except OSError:
            continue
        for child in children:
            found += family(int(child))
    return found


def family_cpu(pid: int) -> float:
    total = 0.0
    for member in family(pid):
        try:
            total += cpu_seconds(member)
        except OSError:  # it has ended: its parent's account has it
            continue
    return total


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
