"""The SMS door survives what the seeds say; planted bugs are found; a seed is a run.

`python -m bench simulate` runs more of them.
"""

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation import clock
from tests.simulation.planted import PLANTED
from tests.simulation.world import run

AGAIN = "python -m bench simulate --seeds 1 --trace --from"


@pytest.fixture(scope="module")
def jitter():
    with clock.virtual_time() as jitter:
        yield jitter


def run_all(seeds, jitter):
    total = Counter()
    for seed in seeds:
        result = run(seed, jitter)
        assert result.broken == [], f"{AGAIN} {seed}"
        total += result.counts
    # A simulation in which nothing happens proves nothing.
    for what in ("texts again", "redelivered", "submits", "cut", "kill", "stall", "store_away", "store_slow"):
        assert total[what] > 0, what


def test_bad_days(jitter):
    run_all(range(60), jitter)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_bad_days(jitter):
    run_all(range(1000, 2000), jitter)


QUICK = [
    "acknowledge before the commit",
    "a response matches the oldest request",
    "the window has no end",
    "no answer counts as sent",
]


def find(plant, seeds, jitter):
    with PLANTED[plant]():
        return next((seed for seed in range(seeds) if run(seed, jitter).broken), None)


@pytest.mark.parametrize("plant", QUICK)
def test_a_planted_bug_is_found(plant, jitter):
    assert find(plant, 40, jitter) is not None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("plant", sorted(PLANTED.keys() - set(QUICK)))
def test_a_planted_bug_is_found_in_time(plant, jitter):
    assert find(plant, 600, jitter) is not None


def test_a_seed_is_a_run(jitter):
    """Also in another process, with other addresses and hashes."""
    say = "from tests.simulation import clock, world\nwith clock.virtual_time() as j: print(world.run(7, j).digest)"
    other = subprocess.run(
        [sys.executable, "-c", say],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
    )
    first, second = run(7, jitter), run(7, jitter)
    assert first.digest == second.digest == other.stdout.strip()
    assert first.digest != run(8, jitter).digest
    assert first.trace
