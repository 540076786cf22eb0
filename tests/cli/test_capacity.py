"""`caplai capacity`, as people use it: what it says, draws and hands on."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from click.testing import CliRunner

from caplai.cli import main
from caplai.cli.plot import axis, blocks, marks

LINKS = [
    {"name": "viettel", "host": "127.0.0.1", "tps": 60},
    {"name": "vina", "host": "127.0.0.1", "tps": 200, "window": 10},
    {"name": "in-only", "host": "127.0.0.1", "use": ["mo"]},
]
WAVE = ("--accounts", "21635070", "--share", "0.05", "--hours", "8")


@pytest.fixture
def capacity(monkeypatch):
    monkeypatch.setenv("CAPLAI_LINKS", json.dumps(LINKS))
    return lambda *words: CliRunner().invoke(main, ["capacity", *words])


def test_it_says_and_draws_what_a_wave_meets(capacity):
    done = capacity(*WAVE)
    assert done.exit_code == 0, done.output
    assert "1,081,754 people of 21,635,070 accounts ask within 8 h" in done.output
    assert (
        "bottleneck                    the TPS of viettel: 1.84 times as much comes as it takes"
        in done.output
    )
    assert "bench wave" in done.output  # where the figures come from
    assert "e+" not in done.output
    assert done.output.count("█") > 200
    assert "asks again: --again is too low" in done.output


def test_the_numbers_for_machines_are_the_same_story(capacity):
    told = json.loads(capacity(*WAVE, "--json").output)
    assert told["messages"] == told["granted"] + told["refused"] + told["silenced"]
    assert told["bottleneck"] == "tps viettel"
    assert told["last_served_at_seconds"] >= 8 * 3600
    assert 0 <= told["median_wait_seconds"] <= told["p99_wait_seconds"] <= told["longest_wait_seconds"]
    last = told["queue"][-1]
    assert (last["arrived"], last["waiting"]) == (told["messages"], 0)
    assert max(point["waiting"] for point in told["queue"]) <= told["most_waiting"]
    # What comes by a link that may not send is answered by the first that may.
    assert {link["name"]: link["share"] for link in told["links"]} == {"viettel": 0.6667, "vina": 0.3333}
    assert any("TPS" in caution or "asks again" in caution for caution in told["cautions"])


def test_carriers_have_shares(capacity):
    words = ("--by", "viettel=3", "--by", "vina=1", "--json")
    told = json.loads(capacity(*WAVE, *words).output)
    assert {link["name"]: link["share"] for link in told["links"]} == {"viettel": 0.75, "vina": 0.25}


def test_a_faster_machine_and_shorter_lives_matter(capacity):
    wave = ("--accounts", "100000000", "--share", "0.5", "--hours", "2", "--json", "--by", "vina=1")
    slow = json.loads(capacity(*wave).output)
    assert slow["bottleneck"] == "window vina"
    assert slow["password_dead_before_sent"] > 0
    assert any("die before their reply is sent" in caution for caution in slow["cautions"])
    quick = json.loads(capacity(*wave, "--latency", "1").output)
    assert quick["bottleneck"] == "tps vina"
    assert quick["last_served_at_seconds"] < slow["last_served_at_seconds"]
    assert json.loads(capacity(*wave, "--rate", "50").output)["bottleneck"] == "decide"


def test_what_would_be_enough_is_said_for_each_part(capacity):
    done = capacity("--accounts", "36000000", "--share", "1", "--hours", "10", "--shape", "flat", "--again", "1",
                    "--malformed", "0", "--wrong-phone", "0", "--rate", "400")  # fmt: skip
    assert done.exit_code == 0, done.output
    # A thousand a second come. What each link needs is not less because the deciders hold back.
    for row in (
        r"store and decide +400 +250% +1,000 a second",
        r"viettel: TPS +60 +1111% +667 TPS",
        r"viettel: window +500 +133% +window 66.7",
        r"vina: window +100 +333% +window 33.3",
    ):
        assert re.search(row, done.output), (row, done.output)


def test_october_2021_needs_no_numbers(capacity):
    told = json.loads(capacity("--shape", "october-2021", "--json").output)
    assert (told["accounts"], told["people"], told["hours"]) == (21_635_070, 1_791_924, 408)
    assert told["longest_wait_seconds"] == 0


def test_without_a_link_it_still_plans(monkeypatch):
    monkeypatch.setenv("CAPLAI_LINKS", "[]")
    done = CliRunner().invoke(main, ["capacity", *WAVE])
    assert done.exit_code == 0, done.output
    assert "nothing waits" in done.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--hours", "8"), "--accounts, --share and --hours"),
        ((*WAVE, "--by", "mobi=1"), "mobi is no link"),
        ((*WAVE, "--by", "viettel"), "NAME=SHARE"),
        ((*WAVE, "--by", "viettel=0"), "above 0"),
        ((*WAVE, "--by", "viettel=nan"), "not below 0"),
        (("--accounts", "1", "--share", "26", "--hours", "1"), "0<x<=1"),
    ],
)
def test_wrong_use_is_told(capacity, words, says):
    done = capacity(*words)
    assert done.exit_code == 2
    assert says in done.output


def test_the_picture_is_an_svg_of_both_curves(capacity, tmp_path):
    file = tmp_path / "plan.svg"
    assert capacity(*WAVE, "--svg", str(file)).exit_code == 0
    root = ElementTree.parse(file).getroot()
    space = "{http://www.w3.org/2000/svg}"
    lines = root.findall(f"{space}polyline")
    words = " ".join(element.text or "" for element in root.iter(f"{space}text"))
    assert len(lines) == 2
    assert len(lines[0].get("points").split()) == 240
    assert "messages that wait" in words and "hours" in words


def test_blocks_fill_their_height_and_nothing_is_nothing():
    assert blocks([0, 1, 8, 16], height=2) == ["   █", " ▁██"]
    assert blocks([0, 0]) == [""] * 6


@pytest.mark.parametrize(
    ("span", "unit", "most"),
    [(30, "seconds", 30), (1200, "minutes", 20), (28_800, "hours", 8), (1_468_800, "days", 15)],
)
def test_axes_have_round_numbers(span, unit, most):
    assert marks(span)[0] == unit
    assert marks(span)[2][-1] == pytest.approx(most)
    ticks, words = axis(span, 60)
    assert len(ticks) == 60
    assert words.endswith(unit)
