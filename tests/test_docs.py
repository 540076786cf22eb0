"""The documentation says what is true. `python -m tests.test_docs` writes the generated part anew."""

import ast
import os
import re
import shlex
import subprocess
import sys
import types
from datetime import timedelta
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import click
import pytest
from pydantic import BaseModel, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from caplai.cli import main
from caplai.config import PREFIX, Config

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- generated from caplai/config.py -->", "<!-- end of the generated part -->"


def reference() -> str:
    """Every setting, its default and meaning, as Markdown."""
    parts: list[str] = []
    _section(Config, "", PREFIX, parts)
    return "\n".join(parts)


def _section(model: type[BaseModel], table: str, variable: str, parts: list[str]) -> None:
    inner: list[tuple[type[BaseModel], str, str]] = []
    rows = ["| setting | environment | default | what it is |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        section = _model_of(field)
        if section is not None:
            many = get_origin(field.annotation) is list
            inner.append(
                (
                    section,
                    f"[[{name}]]" if many else f"[{table}{name}]",
                    "" if many else f"{variable}{name}__".upper(),
                )
            )
        if section is None or get_origin(field.annotation) is list or _also_plain(field):
            environment = f"`{variable}{name}`".upper() if variable else ""
            rows.append(f"| `{name}` | {environment} | {_default(field)} | {field.description} |")
    parts += [f"\n### {f'`{table}`' if table else 'At the top'}\n"]
    if table and model.__doc__:
        parts.append(model.__doc__.strip() + "\n")
    parts += rows
    for section, heading, prefix in inner:
        _section(section, heading, prefix, parts)


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, alone, in a list, or as one of several forms."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _also_plain(field: FieldInfo) -> bool:
    return get_origin(field.annotation) in (Union, types.UnionType)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    if value is PydanticUndefined:
        return "`~/.local/share/caplai`" if field.alias is None and field.default_factory else ""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "":
        return "none"
    if isinstance(value, timedelta | list | bool):
        value = TypeAdapter(type(value)).dump_json(value).decode().strip('"')
    return f"`{value}`"


def test_every_setting_is_documented():
    text = CONFIGURATION.read_text("utf-8")
    written = text.split(BEGIN)[1].split(END)[0].strip()
    assert written == reference().strip(), "run: python -m tests.test_docs"


def documents() -> list[Path]:
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "examples").glob("*/*.md")),
    ]


def shell_lines(path: Path) -> list[str]:
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    return [
        line.removeprefix("$ ").split(" #")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.strip()
    ]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_command_in_the_documents_exists(path):
    for line in shell_lines(path):
        words = [word for word in shlex.split(line) if "=" not in word or not word.split("=")[0].isupper()]
        if words and words[0].endswith("caplai"):
            command: Any = main
            context = click.Context(main)
            rest = iter(words[1:])
            for word in rest:
                if isinstance(command, click.Group) and not word.startswith("-"):
                    found = command.get_command(context, word)
                    assert found is not None, f"{path.name}: {line}: there is no command {word}"
                    command = found
                elif word.startswith("--"):
                    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
                    assert word.split("=")[0] in options, f"{path.name}: {line}: there is no option {word}"
                    flags = {
                        name
                        for taken in command.params
                        if getattr(taken, "is_flag", 0)
                        for name in taken.opts
                    }
                    if word in options - flags - {"--help"}:
                        next(rest)  # its value
        elif words and words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[1] in targets, f"{path.name}: {line}: the Makefile has no {words[1]}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_link_and_file_named_in_the_documents_exists(path):
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
    for named in re.findall(r"`((?:caplai|tests|docs|bench)/[\w/.-]+)`", text):
        assert (ROOT / named).exists(), f"{path.name} names {named}"


def anchors(path: Path) -> set[str]:
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_heading_that_the_documents_link_to_exists(path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text("utf-8")):
        assert anchor in anchors(path.parent / target if target else path), f"{path.name}: {target}#{anchor}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_test_that_the_documents_name_exists(path):
    for file, names in re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", path.read_text("utf-8")):
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        for name in names.split("::"):
            found = [node for node in tree.body if getattr(node, "name", None) == name]
            assert found, f"{path.name}: {file} has no {name}"
            tree = found[0]


@pytest.mark.timeout(300)
def test_the_first_command_of_the_readme_does_what_the_readme_shows(tmp_path):
    shown = (ROOT / "README.md").read_text("utf-8")
    assert 'make demo ARGS="--script"' in shown
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CAPLAI_", "MAKE"))
    }
    environment |= {"CAPLAI_DATA_DIR": str(tmp_path), "CAPLAI_PORT": "0"}
    done = subprocess.run(
        ["make", "demo", "ARGS=--script"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reply = (
        r"Cap lai mat khau thanh cong\. Tai khoan: \d{10}/Mat khau: \d{6}\. Dung truoc [\d:]{5} [\d/]{10}\."
    )
    exchange = rf"8079 -> phone   {reply}"
    assert re.search(exchange, shown)
    assert re.search(exchange, done.stdout)
    assert "All of it happened." in done.stdout


if __name__ == "__main__":
    text = CONFIGURATION.read_text("utf-8")
    before, rest = text.split(BEGIN)
    sys.stdout.write("written\n")
    CONFIGURATION.write_text(f"{before}{BEGIN}\n{reference().strip()}\n{END}{rest.split(END)[1]}", "utf-8")
