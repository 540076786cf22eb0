"""A pytest plugin: whatever becomes of a test, the end of the run's output says it.

With xdist a failure that cannot be written down, or not be sent to the first process (half a surrogate pair in a
captured log is enough), ends that process with an internal error, and nobody learns which failure it was.
"""

import os
import traceback
from collections.abc import Generator

import pytest

_internal: list[str] = []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    try:
        report = yield
    except Exception as failed:
        report = _plain(item, call, failed)
    if report.skipped and os.environ.get("CI") and item.get_closest_marker("peer"):
        # .ci/run installs every peer, so one that is missing there is a failure and no reason to skip.
        report.outcome = "failed"
        report.longrepr = f"CI must not skip this: {report.longrepr}"
    report.sections = [(_sendable(name), _sendable(text)) for name, text in report.sections]
    if report.failed and (said := str(report.longrepr)) != _sendable(said):
        report.longrepr = _sendable(said)
    return report


def _plain(item: pytest.Item, call: pytest.CallInfo, failed: Exception) -> pytest.TestReport:
    """A report of a phase of which pytest could make none, for the reason `failed`."""
    said = [] if call.excinfo is None else traceback.format_exception(call.excinfo.value)
    said += ["\nand no report could be made of it:\n", *traceback.format_exception(failed)]
    return pytest.TestReport(
        item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", "".join(said), call.when,
        duration=call.duration, start=call.start, stop=call.stop,
    )  # fmt: skip


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def pytest_internalerror(excrepr: object) -> None:
    _internal.append(str(excrepr))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Say the first internal error once more: xdist's own about it comes after it, and what is kept of CI's output is
    its end.
    """
    if _internal and not hasattr(config, "workerinput"):
        print("The first internal error ended so:", *_internal[0].splitlines()[-25:], sep="\n")
