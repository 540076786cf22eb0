"""Logs that hold no person: plain for people, JSON for machines, one line for each thing that happened.

The text of an exception may carry a phone or a code, so only its class and place are written, wherever it ends: in
a thread, in a task of asyncio's, in a line that cannot be formatted. Whatever a message says, runs of nine digits or
more are cut out of it: a net under the rule that nobody logs a number, not the rule.
"""

import json
import logging
import os
import re
import stat
import sys
import threading
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the HTTP request that this thread answers; every line that is logged meanwhile carries it."""

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"\d{9,}")
_QUOTING = frozenset({"asyncio", "_granian"})
"""Loggers whose messages go on with what their objects and exceptions say of themselves."""
_QUOTED = re.compile(r"[\n(]")
_PIPE_BUF = 4096
"""What Linux writes to a pipe in one piece (pipe(7)): several processes may share our stderr."""


def configuration(form: Literal["auto", "plain", "json"], level: str, *, messages: bool) -> dict[str, Any]:
    """The logging.config.dictConfig() that writes to stderr. `auto`: plain where a terminal shows it, else JSON.

    `messages`: whether each message's and each web request's way is logged.
    """
    plain = form == "plain" or (form == "auto" and sys.stderr is not None and sys.stderr.isatty())
    formatter = f"caplai.watch.logs.{'Plain' if plain else 'Json'}"
    chatty = {} if messages else {"caplai.trail": {"level": "WARNING"}, "caplai.http": {"level": "WARNING"}}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": formatter}},
        "handlers": {"stderr": {"class": "caplai.watch.logs.Stderr", "formatter": "ours"}},
        "root": {"handlers": ["stderr"], "level": level.upper()},
        "loggers": chatty,
    }


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


def tell_of_failed_threads() -> None:
    """Log the exception that ends a thread. Python would write its text to stderr."""

    def told(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and args.exc_type is not SystemExit:
            name = args.thread.name if args.thread is not None else "?"
            log.critical("the thread %s has ended", name, exc_info=args.exc_value)

    threading.excepthook = told


def _said(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.name in _QUOTING:
        message = _QUOTED.split(message, maxsplit=1)[0]
    return without_numbers(message)


def without_numbers(text: str) -> str:
    """The text with every long number, such as a phone or a code, cut out."""
    return _NUMBER.sub("…", text)


class Plain(logging.Formatter):
    """For people: time, level, logger, message and fields, with exceptions by class and place."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        if rows := getattr(record, "rows", None):
            head = f"{self.formatTime(record)} {record.levelname} {record.name}: "
            return "\n".join([head + row for row in record.step.plain(rows)])  # type: ignore[attr-defined]
        record.exc_text = None  # another handler may have left an exception's whole text here
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        record.message = _said(record)
        return super().formatMessage(record) + "".join(f" {name}={value}" for name, value in _fields(record))

    def formatException(  # noqa: N802 - the name is logging's
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return describe(ei[1]) if ei[1] is not None else ""


class Json(logging.Formatter):
    """For machines: one JSON object a line, with `time` (UTC), `level`, `logger`, `message` and fields."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
        }
        if rows := getattr(record, "rows", None):
            head = json.dumps(line)[:-1]
            return "\n".join([head + row for row in record.step.json(rows)])  # type: ignore[attr-defined]
        line["message"] = _said(record)
        line.update(_fields(record))
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = describe(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> list[tuple[str, Any]]:
    """What `log.info(…, extra={"fields": {…}})` gave, after the id of the request that is being answered."""
    request = request_id.get()
    given = getattr(record, "fields", {}).items()
    return [*([("request", request)] if request is not None else []), *given]


class Stderr(logging.Handler):
    """Writes whole lines, as many at once as arrive in one piece (in a file all of them), so that no two processes'
    mingle.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if sys.__stderr__ is None:  # closed from the start: the number 2 may be anything's
            return
        try:
            data = self._line(record).encode("utf-8", "backslashreplace") + b"\n"
            # Each call lets another thread go on, for whose end we wait: so no more of them than must be.
            most = _PIPE_BUF if len(data) > _PIPE_BUF and not stat.S_ISREG(os.fstat(2).st_mode) else len(data)
            start = 0
            while start < len(data):
                end = len(data) if len(data) - start <= most else data.rfind(b"\n", start, start + most) + 1
                end = end or data.find(b"\n", start) + 1  # a line that is longer than that
                _write(memoryview(data)[start:end])
                start = end
        except OSError:
            pass  # nobody reads us any more (a closed pipe, a full disk): no reason to stop answering people

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # logging's own complaint would quote all that was to be said
            failed = (type(error), error, error.__traceback__)
            says = "a line of the log could not be written"
            return self.format(
                logging.LogRecord(
                    record.name, logging.ERROR, record.pathname, record.lineno, says, None, failed
                )
            )


def _write(data: memoryview) -> None:
    while data:
        data = data[os.write(2, data) :]
