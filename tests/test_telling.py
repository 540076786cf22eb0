"""What tests/telling.py promises: no failure is lost on its way from one test process to the first."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import logging
import pytest
from _pytest.nodes import Node

def test_half_a_pair_in_a_log():
    logging.getLogger("x").warning("half \\ud800 a pair")

def test_half_a_pair_in_the_failure():
    raise ValueError("half \\ud800 a pair")

def test_that_cannot_be_written_down(request, monkeypatch):
    def cannot(*_):
        raise TypeError("no line")
    monkeypatch.setattr(request.node, "repr_failure", cannot)
    assert 1 == 2

@pytest.mark.peer
def test_without_its_peer():
    pytest.skip("no such program")
"""


@pytest.mark.slow
def test_every_failure_is_told(tmp_path):
    (tmp_path / "test_told.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = peer")
    plugins = ["-p", "tests.telling", "-p", "no:django"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-n", "1", "-q", "-ra", str(tmp_path)],
        cwd=Path(__file__).parent.parent,
        env={"PATH": "/usr/bin:/bin", "CI": "true"},
        capture_output=True,
        text=True,
    )
    assert "3 failed, 1 passed" in run.stdout, run.stdout + run.stderr
    assert "INTERNALERROR" not in run.stdout
    assert r"ValueError: half \ud800 a pair" in run.stdout
    assert "assert 1 == 2" in run.stdout
    assert "and no report could be made of it" in run.stdout
    assert "CI must not skip this" in run.stdout
