"""docs/simulator.md and `--list-scenarios` say what there is. `python -m tests.simulator.test_documents` writes the
tables anew.
"""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from caplai.cli import main
from caplai.simulator.scenarios import CATALOGUE, NUMBERS, Part

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "simulator.md"
HAPPENS_TO = {
    Part.LINK: "Connections",
    Part.MT: "To phones (submits)",
    Part.MO: "From phones (deliveries)",
    Part.RECEIPT: "Receipts",
}


def scenarios() -> str:
    """The table of scenarios, by what they happen to."""
    rows = []
    for part, title in HAPPENS_TO.items():
        rows += [
            f"\n{title}:\n",
            "| scenario | usually | what the carrier does | what it takes |",
            "|---|---|---|---|",
        ]
        for one in CATALOGUE.values():
            if one.part is part:
                usually = f"`{one.usual}`" if one.usual else ""
                takes = [one.kind.hint] if one.kind else []
                takes += ["a share"] if one.share is not None else []
                rows.append(f"| `{one.name}` | {usually} | {one.en} | {'; '.join(takes)} |")
    return "\n".join(rows) + "\n"


def numbers() -> str:
    """The table of numbers."""
    rows = ["", "| number | as it is dialled | scenario |", "|---|---|---|"]
    rows += [
        f"| `+{phone}` | 0{phone[2:5]} {phone[5:8]} {phone[8:]} | `{what}` |"
        for phone, what in NUMBERS.items()
    ]
    return "\n".join(rows) + "\n"


TABLES = {"scenarios": scenarios, "numbers": numbers}


def parts(text: str, name: str) -> tuple[str, str, str]:
    """What stands before a generated table, in its place, and after it."""
    before, rest = text.split(f"<!-- {name} -->\n")
    table, after = rest.split(f"<!-- end of {name} -->")
    return before, table, after


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_code(name):
    _, table, _ = parts(DOCUMENT.read_text("utf-8"), name)
    assert table.strip() == TABLES[name]().strip(), "run: python -m tests.simulator.test_documents"


def caplai(*arguments):
    return CliRunner().invoke(main, ["simulator", *arguments])


def test_the_command_lists_them():
    done = caplai("--list-scenarios")
    assert done.exit_code == 0
    for scenario in CATALOGUE.values():
        assert (
            f"  {scenario.name}{'=' * bool(scenario.usual)}{scenario.usual}\n      {scenario.en}\n"
            in done.stdout
        )
    for phone, what in NUMBERS.items():
        assert f"  +{phone}  {what}\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scenario", "thunder"], "There is no scenario 'thunder'. There are: bind-refused, outbind, "),
        (["--scenario", "outbind", "--scenario", "slow=x"], "slow takes seconds, up to 3600."),
        (["--tls-key", __file__], "--tls-key needs --tls-cert."),
        (["--tls-cert", __file__], "test_documents.py: not a certificate in PEM, or not with its key"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(arguments, says):
    done = caplai("--smpp-port", "0", "--http-port", "0", *arguments)
    assert done.exit_code == 2
    assert says in done.stderr


if __name__ == "__main__":
    text = DOCUMENT.read_text("utf-8")
    for name, table in TABLES.items():
        before, _, after = parts(text, name)
        text = f"{before}<!-- {name} -->\n{table()}<!-- end of {name} -->{after}"
    DOCUMENT.write_text(text, "utf-8")
    sys.stdout.write("written\n")
