"""Ports for what a test starts as a process."""

import os
import random
from contextlib import suppress
from itertools import cycle

from caplai import processes

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
_EACH = 1000
_PORTS = cycle(random.sample(range(20_000 + _EACH * _WORKER, 20_000 + _EACH * (_WORKER + 1)), _EACH))
"""Each worker's own, below those that Linux gives to whoever wants any, as each client does (32768 and up)."""


def free_port() -> int:
    """A port that is free now, and that nobody gets before the process for which it is meant."""
    for port in _PORTS:
        with suppress(OSError):
            return processes.free_port("127.0.0.1", port)
    raise AssertionError("a cycle has no end")
