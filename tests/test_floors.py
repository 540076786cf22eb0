"""A file imports only from floors below its own; a door never imports another door (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "caplai"

# A room may import these of ours, and itself.
MAY_IMPORT = {
    "domain": set(),
    "smpp": set(),
    "watch": set(),
    "store": {"domain", "watch"},
    "service": {"domain", "store", "watch"},
    "channels": {"domain", "smpp", "store", "service", "watch"},
    "signin": {"domain", "store", "service", "watch"},
    "portal": {"domain", "store", "service", "watch", "signin"},
    "reports": {"domain", "store"},
    "simulator": {"smpp"},
}
TOP = {"cli"}
"""Wiring: it may import all of them."""
# The pure floor knows neither the framework, nor the clock, nor the network.
IMPURE = {"django", "asyncio", "psycopg", "time", "socket", "os", "logging", "aiohttp", "click", "pydantic"}
# What a floor must not know beyond ours.
FORBIDDEN = {"domain": IMPURE, "smpp": IMPURE, "service": {"aiohttp", "asyncio", "socket", "allauth"}}


def imported(path):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full names"
            yield node.module
            if node.module == "caplai":
                yield from (f"caplai.{alias.name}" for alias in node.names)


def files():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts]


def complaints(room, modules):
    for module in modules:
        ours, _, rest = module.partition(".")
        if ours == "caplai" and rest:
            other = rest.split(".")[0]
            if other != room and other not in MAY_IMPORT[room]:
                yield module
        elif ours in FORBIDDEN.get(room, ()):
            yield module


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = path.relative_to(PACKAGE).parts[0]
    if room in MAY_IMPORT:
        assert list(complaints(room, imported(path))) == []


def test_every_room_has_a_floor_and_says_what_it_is_for():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == {*MAY_IMPORT, *TOP}
    for room in rooms:
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8")))


def test_the_check_can_fail():
    assert list(complaints("domain", ["django.db", "caplai.store.db", "caplai.domain.policy", "re"])) == [
        "django.db",
        "caplai.store.db",
    ]
    assert list(complaints("channels", ["caplai.signin.backend", "caplai.config", "asyncio"])) == [
        "caplai.signin.backend",
        "caplai.config",
    ]
