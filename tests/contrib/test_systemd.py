"""The systemd units: understood by systemd, hardened, and naming commands that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from caplai.cli import main

UNITS = sorted((Path(__file__).parent.parent.parent / "contrib" / "systemd").glob("*.service"))
PROGRAM = "/opt/caplai/bin/caplai"
MOST_EXPOSED = 1.5
"""Of 10, by `systemd-analyze security` of systemd 252: below 2 it says OK. The network has to be let in."""

peer = [
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"),
]
units = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def exposure(unit):
    done = analyze("security", "--offline=true", str(unit))
    return float(re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout).group(1))


@units
def test_it_starts_a_command_that_exists(unit):
    text = unit.read_text("utf-8")
    program, command, *options = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE).group(1).split()
    assert program == PROGRAM
    known = {name for parameter in main.commands[command].params for name in parameter.opts}
    assert set(options) <= known
    assert "--quiet" not in options, (
        "its log would not follow a message, nor say that what was wrong is well again"
    )


class TestWithSystemd:
    pytestmark = peer

    @units
    def test_it_is_understood(self, unit, tmp_path):
        """Every line of it: an unknown setting or section is a complaint."""
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text("utf-8").replace(PROGRAM, "/bin/true"), "utf-8")
        done = analyze("verify", "--man=no", str(copy))
        complaints = [line for line in done.stderr.splitlines() if unit.name in line]
        assert complaints == []

    @units
    def test_it_is_hardened(self, unit):
        assert exposure(unit) <= MOST_EXPOSED

    def test_the_checks_can_fail(self, tmp_path):
        soft = tmp_path / "soft.service"
        soft.write_text("[Service]\nExecStart=/bin/true\nProtectEverything=yes\n", "utf-8")
        assert "ProtectEverything" in analyze("verify", "--man=no", str(soft)).stderr
        assert exposure(soft) > 9
