"""Virtual time: a loop that never waits, and the clocks of the code that runs in it.

`caplai/channels/` reads `time.monotonic()` and `datetime.now()` where it stands, and draws its jitter from `random`;
`virtual_time` gives its modules others of these names for as long as simulations run.
"""

import asyncio
import contextlib
import contextvars
import heapq
import importlib
import pkgutil
import random
import types
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import caplai.channels

BEGINNING = 1000.0
PROCESS: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="")
"""Whose code runs; what it schedules is its own."""
EPOCH = datetime(2026, 11, 23, tzinfo=UTC)


class Loop(asyncio.BaseEventLoop):
    """An event loop that goes to the next appointed time instead of waiting for it, and knows no files.

    It plays several processes, and one of them may hang for a while.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = BEGINNING
        self._selector = self  # what BaseEventLoop asks for news, and for how long
        self._hanging: dict[str, list[asyncio.Handle]] = {}

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise RuntimeError("every task of the simulation waits for another")
        self._now += timeout
        return []

    def hang(self, process: str, seconds: float) -> None:
        """Let nothing of a process run for so long. Then what came for it is first, and its timers all are late."""
        self._hanging.setdefault(process, [])
        self.call_later(seconds, self._go_on, process)

    def _go_on(self, process: str) -> None:
        self._ready.extend(self._hanging.pop(process, ()))

    def _process_events(self, events: list[object]) -> None:
        """Set aside what a process that hangs would do now."""
        if not self._hanging:
            return
        while self._scheduled and self._scheduled[0]._when <= self._now:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False
            self._ready.append(handle)
        due = list(self._ready)
        self._ready.clear()
        for handle in due:
            self._hanging.get(handle._context.get(PROCESS, ""), self._ready).append(handle)

    def _write_to_self(self) -> None:
        pass


def now() -> datetime:
    """The wall clock of the running simulation."""
    return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())


class _Datetime(datetime):
    @classmethod
    def now(cls, tz=None):
        return now()


@contextlib.contextmanager
def virtual_time() -> Iterator[random.Random]:
    """Put `caplai/channels/` on the clock of whichever simulation runs; gives the source of its jitter, to be
    seeded for each run.
    """
    jitter = random.Random()
    clock = types.SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    others = {"time": clock, "datetime": _Datetime, "random": jitter}
    names = [name for _, name, _ in pkgutil.iter_modules(caplai.channels.__path__, "caplai.channels.")]
    names.remove("caplai.channels.mail")  # a thread of the web server's, which needs Django
    replaced = []
    for module in map(importlib.import_module, names):
        for name, other in others.items():
            if hasattr(module, name):
                replaced.append((module, name, getattr(module, name)))
                setattr(module, name, other)
    try:
        yield jitter
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)
