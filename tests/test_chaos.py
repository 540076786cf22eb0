"""A short run of `python -m bench chaos`: kills and cuts under load, and the ledger is right afterwards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_is_twice():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "chaos", "--kills", "8", "--pause", "1", "--json"],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    report = json.loads(done.stdout)
    assert report["broken"] == []
    assert report["acknowledged"] > 100
    assert sum(report["killed"].values()) >= 8
    assert done.returncode == 0
