"""The benchmarks of speed run, on a small scale: what they print is what scripts read, and they check themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.timeout(300)


def bench(*arguments):
    """A benchmark as a user runs it, without a setting of ours."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
    done = subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments), "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_wave():
    report = bench("wave", "--accounts", 5_000, "--rate", 100, "--seconds", 5)
    assert {
        "offered_per_second",
        "completed_per_second",
        "p50_ms",
        "p99_ms",
        "lost",
        "accounts",
        "seconds",
    } <= {*report}
    assert (report["accounts"], report["lost"], report["broken"]) == (5_000, 0, [])
    assert 50 < report["offered_per_second"] < 150
    assert report["store"]["stored"] == report["texts"] > 250
    assert report["store"]["issued"] > 0.8 * report["texts"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ratio"), [("refuse", "refused_over_wave"), ("floor", "wave_over_floor")])
def test_a_wave_beside_its_yardstick(name, ratio):
    report = bench(name, "--accounts", 20_000, "--seconds", 4)
    assert report["broken"] == [] and report[ratio] > 0
