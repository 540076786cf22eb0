"""A short run of `python -m bench scale`: one engine and two, on hosts of their own, and the books are right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import _apart

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peer,  # CI can make namespaces, and must not skip this
    pytest.mark.timeout(240),
    pytest.mark.skipif(_apart.why_not(network=True) is not None, reason=_apart.why_not(network=True) or ""),
]


def test_engines_on_hosts_of_their_own_share_a_link_and_a_database():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
    options = ("--seconds", "5", "--rate", "100", "--accounts", "20000", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "scale", *options],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=220,
    )
    report = json.loads(done.stdout)
    one, two = report["one_engine"], report["two_engines"]
    assert (one["broken"], two["broken"]) == ([], [])
    assert done.returncode == 0
    assert one["texts"] > 300
    assert one["texts_by_bind"] == {"bind 1": 1.0}
    assert min(two["texts_by_bind"].values()) > 0.3
    for wave in (one, two):
        assert wave["completed_per_second"] > 50
        assert wave["cpu_us_per_reply"].keys() >= {"engine1", "phones", "database, sessions"}
        # What a re-issue writes: not less than its rows, not more than a few times as much.
        assert 500 < wave["wal_bytes_per_reply"] < 20_000
        assert wave["wal_bytes_per_reply_of"].keys() >= {"inbox", "outbox", "reissue_case"}
    assert all(sum(octets) > 0 for octets in two["octets_sent_and_received_per_reply"].values())
