"""Virtual time: a loop that never waits, and the clocks of the code that runs in it.

`caplai/channels/` reads `time.monotonic()` and `datetime.now()` where it stands, and draws its jitter from `random`;
`virtual_time` gives its modules others of these names for as long as simulations run.
"""

import asyncio
import contextlib
import importlib
import pkgutil
import random
import types
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import caplai.channels

BEGINNING = 1000.0
_EPOCH = datetime(2026, 11, 23, tzinfo=UTC)


class Loop(asyncio.BaseEventLoop):
    """An event loop that goes to the next appointed time instead of waiting for it, and knows no files."""

    def __init__(self) -> None:
        super().__init__()
        self._now = BEGINNING
        self._selector = self  # what BaseEventLoop asks for news, and for how long

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise RuntimeError("every task of the simulation waits for another")
        self._now += timeout
        return []

    def _process_events(self, events: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def now() -> datetime:
    """The wall clock of the running simulation."""
    return _EPOCH + timedelta(seconds=asyncio.get_running_loop().time())


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
