"""Each message's way, a line for each step, to be followed by its id through the logs of every process.

`request` is the id of the message's inbox row, from its acceptance on; `reply` that of its outbox row. A step is
written once it is committed, so what follows from it in another thread or host may stand some lines before it. A batch
is one record of logging and is written at once, so that a line costs little more than its own text.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

log = logging.getLogger("caplai.trail")

_Rows = tuple[Sequence[tuple[Any, ...]], str | None]


class Step:
    """One kind of line: its name, and its fields with their types.

    A value is a number, or a name of ours such as an outcome or a state: it goes into the line as it is, so it must
    not be anything that a stranger wrote. It may be None. `link` is the same for all lines of a batch.
    """

    def __init__(self, name: str, **fields: type) -> None:
        self.name = name
        self.fields = fields
        values = [f'"{field}": {_JSON[kind]}' for field, kind in fields.items()]
        self._json = ", ".join(["", f'"message": "{name}"', *values])
        self._plain = " ".join([name, *(f"{field}={_PLAIN[kind]}" for field, kind in fields.items())])

    def write(self, rows: Iterable[tuple[Any, ...]], link: str | None = None) -> None:
        """Write a line for each row, whose values stand in the order of the fields."""
        if log.isEnabledFor(logging.INFO) and (found := list(rows)):
            log.info(self.name, extra={"step": self, "rows": (found, link)})

    def json(self, batch: _Rows) -> list[str]:
        """What follows the head of each JSON object, its closing brace included."""
        rows, link = batch
        end = "}" if link is None else f', "link": "{link}"}}'
        form = self._json + end
        return [form % row if None not in row else self._with_nothing(row) + end for row in rows]

    def plain(self, batch: _Rows) -> list[str]:
        """The lines as people read them, without their head."""
        rows, link = batch
        end = "" if link is None else f" link={link}"
        form = self._plain + end
        known = [tuple("-" if value is None else value for value in row) for row in rows]
        if known != rows:
            form = " ".join([self.name, *(f"{field}=%s" for field in self.fields)]) + end
        return [form % row for row in known]

    def _with_nothing(self, row: tuple[Any, ...]) -> str:
        """A row that lacks a value: null in JSON."""
        values = [
            f'"{field}": {"null" if value is None else _JSON[kind] % value}'
            for (field, kind), value in zip(self.fields.items(), row, strict=True)
        ]
        return ", ".join(["", f'"message": {json.dumps(self.name)}', *values])


_JSON = {int: "%d", float: "%.3f", str: '"%s"'}
_PLAIN = {int: "%d", float: "%.3f", str: "%s"}

ACCEPTED = Step("accepted", request=str)
"""It is stored, and so it was acknowledged."""
DECIDED = Step("decided", request=str, outcome=str, seconds=float)
"""`seconds` since it arrived, here and below."""
SUBMITTED = Step("submitted", request=str, reply=int, outcome=str, attempt=int, seconds=float)
SETTLED = Step("settled", request=str, reply=int, state=str, attempt=int, status=str, seconds=float)
"""What became of the reply, as the store has it now: sent, failed, expired, or ready for another attempt. `status` is
the SMSC's answer or `HTTP` and an aggregator's, None if there was none; `seconds` are those until that answer.
"""
PARKED = Step("parked", request=str, error=str)
