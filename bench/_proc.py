"""What the kernel says of a process and all that it started: processor time and memory."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Bytes. `rss` counts a shared page once for each process, `pss` once in all."""

    rss: int
    pss: int


class Tree:
    """A process and its descendants, of which some may come and go."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def seconds(self) -> float:
        """Processor time, user and system, of all of them, and of those that have ended and were waited for."""
        return sum(map(seconds, self.pids()))

    def running(self) -> float:
        """Seconds that their threads which are alive have run, to the nanosecond (proc's schedstat): for differences
        over a moment in which none of them ends.
        """
        total = 0
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def memory(self) -> Memory:
        """Of all of them together. Needs the right to look at them (root, or `debuggable`)."""
        sums = {"Rss": 0, "Pss": 0}
        for pid in self.pids():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue
            for line in lines:
                name, _, value = line.partition(":")
                if name in sums:
                    sums[name] += int(value.split()[0]) * 1024
        return Memory(sums["Rss"], sums["Pss"])

    def pids(self) -> list[int]:
        found, look = [], [self.pid]
        while look:
            pid = look.pop()
            found.append(pid)
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    look += map(int, (task / "children").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found


def seconds(pid: int) -> float:
    """Processor time of one process and of its children that have ended and were waited for; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) * _TICK  # utime, stime, cutime, cstime: proc_pid_stat(5)
