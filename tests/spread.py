"""A pytest plugin: how the tests are spread over the processes of `-n`. What takes longest begins first.

Each test goes to whichever process is free, except that a file of WHOLE stays in one: its tests share something
that is slow to make. (xdist's own way for this, the mark `xdist_group`, silently does nothing with pytest 9.2:
pytest-xdist issue 1386.)
"""

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

WHOLE = (
    "tests/browser/test_account.py",
    "tests/browser/test_demo.py",
    "tests/browser/test_passkeys.py",
    "tests/browser/test_recover.py",
    "tests/test_cli.py",
    "tests/test_local_postgres.py",
    "tests/test_secrets.py",
    "tests/simulation/test_simulation.py",
)
LONG = (
    "tests/hosts/",
    "tests/test_chaos.py",
    "tests/browser/test_demo.py",
    "tests/test_cli.py",
    "tests/test_local_postgres.py",
    "tests/watch/test_watched.py",
    "tests/test_docs.py",
    "tests/simulation/",
    "tests/test_",
    "tests/peers/",
    "tests/channels/",
)
"""What takes longest, the longest first: paths, or how they begin. The rest is of short tests."""
LAST = (
    "tests/browser/test_passkeys.py",
    "tests/browser/test_account.py",
    "tests/browser/test_recover.py",
    "tests/browser/",
)
"""What shares a browser, which other tests cannot have beside them; the longest first."""


def _rank(item: pytest.Item) -> int:
    for paths, first in ((LONG, 0), (LAST, len(LONG) + 1)):
        for n, path in enumerate(paths, first):
            if item.nodeid.startswith(path):
                return n
    return len(LONG)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-django has put the tests that share transactions first; within a rank its order stays."""
    items.sort(key=_rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # it would put what has most tests first
    return _Spread(config, log)


class _Spread(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file in WHOLE else nodeid


for _path in {*WHOLE, *LONG, *LAST}:
    assert list(Path(__file__).parent.parent.glob(f"{_path}*")), f"{_path} is not there any more"
