"""Accounts come from the agency as a CSV file: read it whole, then upsert it slice by slice.

Nothing is changed until the last line was read and checked. Then the rows, staged in a temporary table and
sorted by code, are stored in slices: new accounts by one insert, without locks; the accounts that differ in
chunks, each a transaction that takes their locks, looks again, ends their cases and updates them. So no lock
stands through more than its own thousand accounts, and the lock table never overflows.

A crash or Ctrl-C leaves the slices and chunks before it stored, every account whole and its case ended where it
had to be, and the rest as it was. The same file again stores the rest.
"""

import contextlib
import csv
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import psycopg

from caplai.domain import msisdn
from caplai.service import locks

COLUMNS = ("code", "phone", "email", "state")
STATES = frozenset({"pending", "approved", "closed"})
LONGEST_LINE = 1_000
"""Characters. No good row comes near it; a file without line ends must not fill the memory."""

_CODE = re.compile(r"[0-9]{10}", re.ASCII)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_LONGEST_EMAIL = 254  # RFC 5321, 4.5.3.1.3, without the angle brackets of a path
_COLUMN_NAME = re.compile(r"[a-z_ ]{1,30}", re.ASCII)
_CUT = 4 * LONGEST_LINE + 1  # bytes: UTF-8 has at most four a character, so what is cut is always too long

_SLICE = 10_000
_CHUNK = 1_000
"""Accounts locked at once. The lock table of a server as it comes holds about 6,400, the engine's included."""


class WrongFile(Exception):
    """The file as a whole is not what an import takes; the text says what to do, and quotes no person's data."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A refused row: its line in the file (the header is line 1) and the reason, without its values."""

    line: int
    reason: str


@dataclass(slots=True)
class Imported:
    """What an import did: accounts, and refused rows."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    phones_kept: int = 0
    """Existing accounts whose phone differs in the file and was not changed."""
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the header says: what separates the columns, and where each of COLUMNS stands."""

    delimiter: str
    order: tuple[int, ...]


def read_lines(file: IO[bytes], progress: Callable[[int], object] = lambda count: None) -> Iterator[str]:
    """The lines of a file, for `import_accounts`: each ends with LF; bytes that are no UTF-8 become surrogates.

    `progress` is told of bytes as they are read, in the end of all of them. Of a line much longer than
    LONGEST_LINE only the beginning is returned, still longer than that.
    """
    while line := file.readline(_CUT):
        progress(len(line))
        yield line.decode("utf-8", "surrogateescape")
        while len(line) == _CUT and not line.endswith(b"\n"):
            line = file.readline(_CUT)
            progress(len(line))


def import_accounts(
    conn: psycopg.Connection,
    lines: Iterable[str],
    *,
    update_phones: bool = False,
    report: Callable[[BadRow], object] = lambda row: None,
    stored: Callable[[int, int], object] = lambda rows, total: None,
) -> Imported:
    """Upsert the accounts of a CSV file with a header; the good rows are kept, each bad one is reported.

    Each line is a row by itself: quoted fields may hold the separator, but no line end. A phone of an existing
    account changes only with `update_phones`. An account whose phone or state changes loses its open case
    (service.md, "One case per need"). The same file twice changes nothing.

    `report` gets each refused row: the bad ones in their order, then those that repeat a code with other values.
    `stored` is told how many rows a slice stored, and of how many in all.

    Needs a connection in autocommit, for each slice and chunk is a transaction of its own: an exception from
    anywhere leaves those before it (see the module). Raises WrongFile, and then nothing was changed.
    """
    assert conn.autocommit, "each chunk needs a transaction of its own"
    result = Imported()

    def refuse(line: int, reason: str) -> None:
        result.refused += 1
        report(BadRow(line, reason))

    source = iter(lines)
    layout = _read_header(next(source, ""))
    with _staging(conn):
        _stage(conn, _rows(source, layout, refuse))
        for line, first in conn.cursor().stream("select line, first from staged where differs order by line"):
            refuse(line, f"the same code stands in line {first} with other values; put it in once")
        _prepare(conn)
        _store(conn, result, update_phones, stored)
    if result.added or result.changed:
        # A table that has just grown is planned as the small one it was, until autovacuum comes by.
        conn.execute("analyze account")
    return result


@contextlib.contextmanager
def _staging(conn: psycopg.Connection) -> Iterator[None]:
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("drop table if exists pg_temp.incoming, pg_temp.staged")


def _stage(conn: psycopg.Connection, rows: Iterable[tuple[int, str, str, str, str]]) -> None:
    """The rows, sorted by code, each with the first line of its code and whether it says something else."""
    conn.execute(
        'create temporary table incoming (line bigint, code text collate "C", phone text, email text, state text)'
        " on commit preserve rows"
    )
    with conn.cursor().copy("copy incoming from stdin") as copy:
        for row in rows:
            copy.write_row(row)
    conn.execute(
        "create temporary table staged on commit preserve rows as"
        " select code, line, phone, email, state, first_value(line) over same as first,"
        " (phone, email, state) <> (first_value(phone) over same, first_value(email) over same,"
        " first_value(state) over same) as differs"
        " from incoming window same as (partition by code order by line)"
    )
    conn.execute("drop table incoming")


def _prepare(conn: psycopg.Connection) -> None:
    """Of rows with one code the first stays."""
    conn.execute("delete from staged where line <> first")
    conn.execute("create unique index on staged (code)")
    conn.execute("analyze staged")


# Both sides of a join are bounded: the planner does not carry a range from one to the other.
# Existing accounts are left out first, for the conflict would wait for whoever is changing one.
_ADD = """
insert into account (code, phone, email, state)
select code, phone, email, state from staged s where s.code > %(after)s and s.code <= %(upto)s and not exists
    (select from account a where a.code = s.code and a.code > %(after)s and a.code <= %(upto)s)
order by code on conflict (code) do nothing
"""

_CHANGES = "((a.email, a.state) <> (s.email, s.state) or %(update_phones)s and a.phone <> s.phone)"

_DIFFERENT = f"""
select code, {_CHANGES}, a.phone <> s.phone from staged s join account a using (code)
where s.code > %(after)s and s.code <= %(upto)s and a.code > %(after)s and a.code <= %(upto)s
and (a.phone, a.email, a.state) <> (s.phone, s.email, s.state)
order by code
"""  # noqa: S608 - no values

# clock_timestamp: a case may have been opened while this transaction waited for its lock.
_END_CASES = """
update reissue_case c set ended_at = clock_timestamp(), ended_as = 'account_changed'
from staged s join account a using (code)
where code = any(%(codes)s) and c.account = code and c.ended_at is null
and (a.state <> s.state or %(update_phones)s and a.phone <> s.phone)
"""

# An account that is closed must not find its sessions alive when it is approved again; nor does whoever had the
# old phone's devices keep them. The stamp ends the sessions.
_END_SIGN_INS = """
with changed as (
    select code from staged s join account a using (code) where code = any(%(codes)s)
    and (a.state = 'approved' and s.state <> 'approved' or %(update_phones)s and a.phone <> s.phone)
), forgotten as (
    delete from device using login l, changed where device.login_id = l.id and l.account_id = changed.code
)
update login set stamp = replace(gen_random_uuid()::text, '-', '') from changed where account_id = changed.code
"""

_CHANGE = f"""
update account a set email = s.email, state = s.state,
    phone = case when %(update_phones)s then s.phone else a.phone end
from staged s where s.code = any(%(codes)s) and a.code = s.code and {_CHANGES}
"""  # noqa: S608 - no values


def _store(
    conn: psycopg.Connection, result: Imported, update_phones: bool, stored: Callable[[int, int], object]
) -> None:
    # Planned each time: a plan made for the first slices would be kept while the table grows a thousandfold.
    execute = functools.partial(conn.execute, prepare=False)
    [[total]] = execute("select count(*) from staged").fetchall()
    after = ""
    while True:
        [[upto, rows]] = execute(
            "select max(code), count(*) from (select code from staged where code > %s order by code limit %s) _",
            [after, _SLICE],
        ).fetchall()
        if not rows:
            return
        between = {"after": after, "upto": upto, "update_phones": update_phones}
        added = execute(_ADD, between).rowcount
        changed, changing = 0, []
        if added < rows:
            for code, changes, other_phone in execute(_DIFFERENT, between).fetchall():
                if changes:
                    changing.append(code)
                if other_phone and not update_phones:
                    result.phones_kept += 1
        for start in range(0, len(changing), _CHUNK):
            changed += _change(conn, changing[start : start + _CHUNK], update_phones)
        result.added += added
        result.changed += changed
        result.unchanged += rows - added - changed
        stored(rows, total)
        after = upto


def _change(conn: psycopg.Connection, codes: Sequence[str], update_phones: bool) -> int:
    """Change these accounts where they still differ from what is staged; returns how many did."""
    parameters = {"codes": codes, "update_phones": update_phones}
    with conn.transaction():
        # Whoever decides about these accounts right now finishes first, and sees the change afterwards.
        locks.take(conn, (locks.account_key(code) for code in codes))
        conn.execute(_END_CASES, parameters, prepare=False)
        conn.execute(_END_SIGN_INS, parameters, prepare=False)
        return conn.execute(_CHANGE, parameters, prepare=False).rowcount


def _read_header(line: str) -> _Layout:
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
        if name not in COLUMNS:
            # Where there is no header this is a person's data, which a message must not show.
            shown = f", {name!r}," if not lacking and _COLUMN_NAME.fullmatch(name) else ""
            problems.append(f"column {position}{shown} is none of them")
    problems += [f"it has the column {name} twice" for name in COLUMNS if names.count(name) > 1]
    if problems:
        raise WrongFile(
            f"The first line must name the columns {','.join(COLUMNS)}; " + "; ".join(problems[:8]) + "."
        )
    return _Layout(delimiter, tuple(names.index(name) for name in COLUMNS))


def _rows(
    lines: Iterable[str], layout: _Layout, refuse: Callable[[int, str], None]
) -> Iterator[tuple[int, str, str, str, str]]:
    """The good rows with their lines."""
    for number, line in enumerate(lines, 2):
        row = _parse(line, layout)
        if isinstance(row, str):
            refuse(number, row)
        elif row is not None:
            yield (number, *row)


def _parse(line: str, layout: _Layout) -> tuple[str, str, str, str] | str | None:
    """A line → its values in the order of COLUMNS, or why it is refused, or None if it is blank."""
    if len(line) > LONGEST_LINE:
        return f"longer than {LONGEST_LINE} characters"
    text = line.rstrip("\r\n")
    if "\r" in text or "\n" in text:
        return "a line end (CR) in the middle of the line"
    fields = _split(text, layout.delimiter)
    if fields is None:
        return "a quotation mark without its other one (a field must not go on in the next line)"
    if len(fields) != len(COLUMNS):
        return f"{len(fields)} columns instead of {len(COLUMNS)}" if text.strip() else None
    code, phone, email, state = [fields[index].strip() for index in layout.order]
    number = msisdn.parse(phone)
    state = state.lower()
    if number and state in STATES and _CODE.fullmatch(code) and (not email or _is_email(email)):
        return code, number, email, state
    return _reason(text, code, number, email)


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


def _reason(text: str, code: str, number: str | None, email: str) -> str:
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
    return f"state: must be one of {', '.join(sorted(STATES))}"
