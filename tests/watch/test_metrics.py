"""Metrics that take batches, and labels that a peer cannot fill."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from caplai.watch import metrics
from caplai.watch.metrics import REGISTRY, Bounded, Seconds

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "contrib" / "prometheus" / "caplai.rules.yml"


@pytest.fixture
def seconds():
    histogram = Seconds("caplai_test_seconds", "For a test.", ["link"])
    yield histogram
    REGISTRY.unregister(histogram)


def samples(name):
    families = text_string_to_metric_families(metrics.render().decode())
    found = next(family for family in families if family.name == name)
    return {(sample.name, *sample.labels.values()): sample.value for sample in found.samples}


def test_a_batch_falls_into_its_buckets(seconds):
    seconds.observe([0.01, 0.011, 0.3, 9999], "viettel")
    seconds.observe([0.02], "viettel")
    seconds.observe([], "mobifone")
    found = samples("caplai_test_seconds")
    assert found["caplai_test_seconds_bucket", "0.01", "viettel"] == 1  # a bound belongs to its bucket
    assert found["caplai_test_seconds_bucket", "0.025", "viettel"] == 3
    assert found["caplai_test_seconds_bucket", "3600.0", "viettel"] == 4
    assert found["caplai_test_seconds_bucket", "+Inf", "viettel"] == 5
    assert found["caplai_test_seconds_count", "viettel"] == 5
    assert found["caplai_test_seconds_sum", "viettel"] == pytest.approx(9999.341)
    assert found["caplai_test_seconds_count", "mobifone"] == 0


def test_a_process_is_measured_where_proc_shows_processes_alone(tmp_path):
    """So it is under our systemd units; the alert about memory needs it."""
    (tmp_path / "self").symlink_to("/proc/self")
    families = {
        family.name: family for family in metrics.Process(proc=str(tmp_path), registry=None).collect()
    }
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert abs(families["process_start_time_seconds"].samples[0].value - time.time()) < 3600
    assert samples("process_open_fds")


def test_a_peer_makes_a_bounded_number_of_labels():
    bounded = Bounded(r"0x[0-9a-f]{8}", room=3)
    given = [f"0x{number:08x}" for number in range(100)]
    assert {bounded(value) for value in given} == {*given[:3], "other"}
    assert bounded(given[0]) == given[0]
    assert bounded(None) == "none"


@pytest.mark.parametrize(
    ("label", "value", "kept"),
    [
        (metrics.status, "ESME_RTHROTTLED", True),
        (metrics.status, "0x00000471", True),
        (metrics.receipt_state, "DELIVRD", True),
        (metrics.receipt_state, "9", True),
        (metrics.receipt_state, "84327000686", False),
        (metrics.receipt_state, 'x"} 1', False),
        (metrics.command, "deliver_sm", True),
        (metrics.command, "0x00000f00", False),
    ],
)
def test_only_harmless_values_become_labels(label, value, kept):
    assert label(value) == (value if kept else "other")


def test_names_follow_prometheus():
    for family in text_string_to_metric_families(metrics.render().decode()):
        if family.name.startswith("caplai_"):
            assert family.documentation.endswith(".")
            assert family.type != "histogram" or family.name.endswith("_seconds")


def alerts():
    """Each rule of the file: its alert, and its text."""
    rules = re.split(r"^ {6}- alert: ", RULES.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return [(rule.partition("\n")[0], rule) for rule in rules]


def test_every_alert_says_what_is_wrong_and_where_to_read_what_to_do():
    assert len(alerts()) >= 15
    operations = ROOT / "docs" / "operations.md"
    told = operations.read_text("utf-8") if operations.exists() else None
    for name, rule in alerts():
        assert re.search(r"\n {10}summary: \S", rule), name
        assert f"runbook: docs/operations.md#{name.lower()}\n" in rule, name
        assert told is None or re.search(rf"^#+ {name}$", told, re.MULTILINE), f"the runbook lacks {name}"


@pytest.mark.peer
def test_prometheus_reads_the_rules():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


@pytest.mark.peer
def test_prometheus_reads_what_is_exported():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    metrics.for_link("viettel")
    metrics.answered_seconds.observe([0.1], "viettel")
    checked = subprocess.run([promtool, "check", "metrics"], input=metrics.render(), capture_output=True)
    assert checked.returncode == 0, (checked.stdout + checked.stderr).decode()
