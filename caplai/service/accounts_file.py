"""The agency's CSV file of accounts: its lines, what its header says, and each row, good or bad.

Almost every line is written as people write: one regular expression reads it (Layout.plain), and only what that does
not know goes the long way, which knows everything. `test_register.py` holds the two to one result.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from caplai.domain import foreign_hash, msisdn

COLUMNS = ("code", "phone", "email", "state")
PASSWORD = "password_hash"  # noqa: S105
"""A column that may be there."""
STATES = frozenset({"pending", "approved", "closed"})
LONGEST_LINE = 1_000
"""Characters. No good row comes near it; a file without line ends must not fill the memory."""

_CODE = re.compile(r"[0-9]{10}", re.ASCII)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_LONGEST_EMAIL = 254  # RFC 5321, 4.5.3.1.3, without the angle brackets of a path
_COLUMN_NAME = re.compile(r"[a-z_ ]{1,30}", re.ASCII)
_CUT = 4 * LONGEST_LINE + 1  # bytes: UTF-8 has at most four a character, so what is cut is always too long

_BLOCK = 1 << 18  # bytes read at once


class WrongFile(Exception):
    """The file as a whole is not what an import takes; the text says what to do, and quotes no person's data."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A refused row: its line in the file (the header is line 1) and the reason, without its values."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header says: what separates the columns, and where each of COLUMNS, then PASSWORD, stands."""

    delimiter: str
    order: tuple[int, ...]

    def plain(self) -> re.Pattern[str]:
        """A line in which everything is as plain as it usually is; its groups are named as the columns."""
        names = dict(zip(self.order, (*COLUMNS, PASSWORD), strict=False))
        fields = (f"(?P<{names[index]}>{_PLAIN[names[index]]})" for index in sorted(names))
        return re.compile(rf"{self.delimiter.join(fields)}\r?", re.ASCII)


# Each a part of what _parse takes; a phone is the national number without its 0.
_PLAIN = {
    "code": "[0-9]{10}",
    "phone": r"(?:0|\+?84)[35789][0-9]{8}",
    "email": r"(?:[A-Za-z0-9._+-]{1,64}@[A-Za-z0-9-]{1,60}(?:\.[A-Za-z0-9-]{1,60}){1,2})?",
    "state": "approved|pending|closed",
    PASSWORD: r'[A-Za-z0-9$./+=_]{0,300}|"[A-Za-z0-9$./+=_,-]{0,300}"',
}


def read_lines(file: IO[bytes], progress: Callable[[int], object] = lambda count: None) -> Iterator[str]:
    """The lines of a file without their LF, for `import_accounts`; bytes that are no UTF-8 become surrogates.

    `progress` is told of bytes as they are read, in the end of all of them. Of a line much longer than
    LONGEST_LINE only the beginning is returned, still longer than that.
    """
    begun = b""
    while block := file.read(_BLOCK):
        progress(len(block))
        whole, end, begun = (begun + block).rpartition(b"\n")
        if end:
            # By LF alone: splitlines() knows line ends that are none in a CSV file.
            for line in whole.decode("utf-8", "surrogateescape").split("\n"):
                yield line[:_CUT]
        begun = begun[:_CUT]
    if begun:
        yield begun.decode("utf-8", "surrogateescape")


def read_header(line: str) -> Layout:
    text = line.lstrip("\ufeff").rstrip("\r\n")
    if "\0" in text:
        raise WrongFile("It is no plain text (perhaps UTF-16). Save it as CSV in UTF-8.")
    if "\r" in text or "\n" in text:
        raise WrongFile("Its lines end with CR alone, as on old Macs. Save it with LF or CRLF.")
    delimiter = ";" if ";" in text and "," not in text else ","
    names = [name.strip().lower() for name in _split(text, delimiter) or []]
    lacking = [name for name in COLUMNS if name not in names]
    problems = [f"it lacks the column {name}" for name in lacking]
    for position, name in enumerate(names, 1):
        if name not in (*COLUMNS, PASSWORD):
            # Where there is no header this is a person's data, which a message must not show.
            shown = f", {name!r}," if not lacking and _COLUMN_NAME.fullmatch(name) else ""
            problems.append(f"column {position}{shown} is none of them")
    problems += [f"it has the column {name} twice" for name in (*COLUMNS, PASSWORD) if names.count(name) > 1]
    if problems:
        raise WrongFile(
            f"The first line must name the columns {','.join(COLUMNS)}; " + "; ".join(problems[:8]) + "."
        )
    return Layout(delimiter, tuple(names.index(name) for name in (*COLUMNS, PASSWORD) if name in names))


def read_rows(
    lines: Iterable[str], layout: Layout, refuse: Callable[[int, str], None], parts: int
) -> Iterator[tuple[int, str]]:
    """The good rows as COPY reads them, each with its line; before it, which of the parts it belongs to."""
    part_of = {str(digit): digit % parts for digit in range(10)}
    plain = layout.plain()
    match_line, column = plain.fullmatch, plain.groupindex
    code, phone, email, state = (column[name] for name in COLUMNS)
    hashed = column.get(PASSWORD)
    taken = unfit = ""
    for number, line in enumerate(lines, 2):
        if match := match_line(line):
            if hashed:
                taken, unfit = _read_hash(match[hashed].strip('"'))
            if unfit:
                refuse(number, unfit)
            else:
                its = match[code]
                yield (
                    part_of[its[-1]],
                    f"{number}\t{its}\t+84{match[phone][-9:]}\t{match[email]}\t{match[state]}\t{taken}\n",
                )
            continue
        row = _parse(line, layout)
        if isinstance(row, str):
            refuse(number, row)
        elif row is not None:
            yield (
                part_of[row[0][-1]],
                "\t".join((str(number), *row)).replace("\\", "\\\\") + "\n",
            )


def _parse(line: str, layout: Layout) -> tuple[str, ...] | str | None:
    """A line → its values in the order of COLUMNS and its hash, or why it is refused, or None if it is blank.

    No value holds a control character.
    """
    if len(line) > LONGEST_LINE:
        return f"longer than {LONGEST_LINE} characters"
    text = line.rstrip("\r\n")
    if "\r" in text or "\n" in text:
        return "a line end (CR) in the middle of the line"
    fields = _split(text, layout.delimiter)
    if fields is None:
        return "a quotation mark without its other one (a field must not go on in the next line)"
    if len(fields) != len(layout.order):
        return f"{len(fields)} columns instead of {len(layout.order)}" if text.strip() else None
    code, phone, email, state, *hashed = [fields[index].strip() for index in layout.order]
    number = msisdn.parse(phone)
    state = state.lower()
    taken, unfit = _read_hash(hashed[0]) if hashed else ("", "")
    if number and state in STATES and _CODE.fullmatch(code) and (not email or _is_email(email)) and not unfit:
        return code, number, email, state, taken
    return _reason(text, code, number, email, state, unfit)


def _read_hash(text: str) -> tuple[str, str]:
    """What is kept of it, and why it is refused; one of them is empty, both if there is none."""
    if not text:
        return "", ""
    taken, unfit = foreign_hash.read(text)
    return taken, unfit and f"{PASSWORD}: {unfit}"


def _split(text: str, delimiter: str) -> list[str] | None:
    """The fields of one line (RFC 4180), or None if its quotation marks do not pair."""
    if '"' not in text:
        return text.split(delimiter)
    if text.count('"') % 2:
        return None
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return None


def _is_email(email: str) -> bool:
    return bool(_EMAIL.fullmatch(email)) and email.isprintable() and len(email) <= _LONGEST_EMAIL


def _reason(text: str, code: str, number: str | None, email: str, state: str, unfit: str) -> str:
    """Why these values are no account; the first reason is enough."""
    if "\0" in text:
        return "a NUL character: no plain text"
    if any("\udc80" <= char <= "\udcff" for char in text):
        return "not UTF-8"
    if not _CODE.fullmatch(code):
        digits = "leading zeros may be lost" if code.isdigit() and len(code) < 10 else "nothing else"
        return f"code: must be exactly ten digits ({digits})"
    if number is None:
        return "phone: no number that can receive an SMS"
    if email and not _is_email(email):
        return "email: no e-mail address"
    if state not in STATES:
        return f"state: must be one of {', '.join(sorted(STATES))}"
    return unfit
