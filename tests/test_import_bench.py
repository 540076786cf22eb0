"""A small run of `python -m bench import`: what it measured really happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--with-passwords", "0.5"]])
def test_what_it_measured_is_there(options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "import", "--accounts", "3000", "--json", *options],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    report = json.loads(done.stdout)
    assert report["broken"] == [], report
    assert done.returncode == 0
    assert report["accounts"] == 3000
    assert {"ratio", "import_seconds", "bare_copy_seconds", "peak_rss_mb", "stored_mb"} <= set(report)
