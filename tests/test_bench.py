"""What the benchmarks judge by: whether two lots of times differ, whether memory grows, what a process used."""

import os
import random
import subprocess
import sys
import time
import types

import pytest

from bench import _ledger, enumeration, memory
from bench._proc import Tree


@pytest.fixture
def draw(monkeypatch) -> random.Random:
    monkeypatch.setattr(enumeration, "_DRAWS", 500)
    return random.Random(1)


def times(draw: random.Random, shift: float = 0.0) -> list[float]:
    """Milliseconds, with the tail that a busy machine gives them."""
    return [20 + shift + draw.expovariate(1.0) for _ in range(200)]


def test_a_shift_is_told_from_noise(draw):
    found = enumeration.compare(times(draw), times(draw, shift=1.0), 0.5, draw)
    assert found["p"] < 0.01
    assert 0 < found["low"] < found["ms"] < found["high"]


def test_noise_is_not_taken_for_a_shift(draw):
    found = enumeration.compare(times(draw), times(draw), 0.5, draw)
    assert found["p"] > 0.01
    assert found["low"] < 0 < found["high"]


def test_growth_is_told_from_noise():
    draw = random.Random(1)
    for growth in (0.0, 0.5):
        slope, doubt = memory.trend([(x, 100 + growth * x + draw.random()) for x in range(100)])
        assert abs(slope - growth) < doubt < 0.01


def test_a_process_is_counted_with_what_it_started():
    program = "import subprocess, sys, time; b = bytearray(40_000_000); s = time.process_time()\n"
    program += "while time.process_time() - s < 0.1: pass\n"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program + 'input()'!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE)
    try:
        tree, end = Tree(process.pid), time.monotonic() + 20
        while tree.seconds() < 0.1 and time.monotonic() < end:
            time.sleep(0.02)
        assert len(tree.pids()) == 2
        assert 0.1 <= tree.seconds() < 2
        assert tree.running() == pytest.approx(tree.seconds(), abs=0.1)
        assert 40e6 < tree.memory().pss <= tree.memory().rss < 200e6
        assert os.getpid() not in tree.pids()
    finally:
        process.communicate(b"\n", timeout=20)


def test_a_text_stored_twice_within_60_s_breaks_the_ledger_and_later_is_told(conn):
    def store(words, *seconds):
        for second in seconds:
            conn.execute(
                "insert into inbox (link, source, destination, text, received_at)"
                " values ('carrier', '84327000686', '8079', %s, timestamptz '2026-11-23' + make_interval(secs => %s))",
                [words, second],
            )

    def judge():
        return _ledger._stored(conn, types.SimpleNamespace(sent=[])), _ledger.stored_again(conn.info.dsn)

    store("BH MK 0123456789 a", 0)
    store("BH MK 0123456789 b", 0, 61, 200)
    assert judge() == ([], 2)
    store("BH MK 0123456789 c", 0, 100, 160)
    [broken], late = judge()
    assert broken.startswith("stored again 1 times within 60 s")
    assert late == 4
