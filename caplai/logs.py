"""Logs that hold no person: the text of an exception may carry a phone or a code, so only its class and place
are written.
"""

import logging
import traceback
from types import TracebackType


def describe(error: BaseException) -> str:
    """The exception, its causes and, of a group, its members: each by class and place, without its text."""
    return "".join(_lines(error, set())).rstrip()


def _lines(error: BaseException | None, seen: set[int]) -> list[str]:
    lines: list[str] = []
    while error is not None and id(error) not in seen:  # a chain may run in a circle
        seen.add(id(error))
        lines += traceback.format_tb(error.__traceback__)
        lines.append(f"{type(error).__module__}.{type(error).__qualname__}\n")
        if isinstance(error, BaseExceptionGroup):
            for number, member in enumerate(error.exceptions, 1):
                lines.append(f"-- {number} of {len(error.exceptions)}:\n")
                lines += _lines(member, seen)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return lines


class Formatter(logging.Formatter):
    """The plain format, with exceptions by class and place."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatException(  # noqa: N802 - the name is logging's
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return describe(ei[1]) if ei[1] is not None else ""
