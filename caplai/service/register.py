"""Accounts come from the agency as a CSV file: read it whole, then upsert it slice by slice.

Nothing is changed until the last line was read and checked. Then the rows, staged in a temporary table and
sorted by code, are stored in slices: new accounts by one transaction, without locks; the accounts that differ in
chunks, each a transaction that takes their locks, looks again, ends their cases and updates them. So no lock
stands through more than its own thousand accounts, and the lock table never overflows.

What it costs a row decides how long a nation takes (`python -m bench import`). Almost every line is written as people
write: one regular expression reads it (_Layout.plain), and only what that does not know goes the long way, which
knows everything. `test_register.py` holds the two to one result.

A password hash of another system is kept beside the account (`taken_over_password`) until its owner first signs in
(credentials.py). It is never taken over for an account that anybody has signed in to here: a password that was
replaced must not come back with an old file.

A crash or Ctrl-C leaves the slices and chunks before it stored, every account whole and its case ended where it
had to be, and the rest as it was. The same file again stores the rest.
"""

import contextlib
import csv
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import psycopg

from caplai.domain import foreign_hash, msisdn
from caplai.service import locks

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
_LINES = 5_000  # rows sent to the staging table at once
_WORK_MEM = "128MB"
"""For the one sort. The server gives back what it does not use."""
_SLICE = 20_000
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
    """What the header says: what separates the columns, and where each of COLUMNS, then PASSWORD, stands."""

    delimiter: str
    order: tuple[int, ...]

    def plain(self) -> re.Pattern[str]:
        """A line in which everything is as plain as it usually is; its groups are named as the columns."""
        names = dict(zip(self.order, (*COLUMNS, PASSWORD), strict=False))
        fields = (f"(?P<{names[index]}>{_PLAIN[names[index]]})" for index in sorted(names))
        return re.compile(rf"{self.delimiter.join(fields)}\r?", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Staged:
    """How many rows are staged, and how many of them may have a hash."""

    rows: int
    hashes: int


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
        staged = _sort(conn, refuse)
        _store(conn, result, staged, update_phones, stored)
    if result.added or result.changed:
        # A table that has just grown is planned as the small one it was, until autovacuum comes by.
        conn.execute("analyze account")
        conn.execute("analyze taken_over_password")
    return result


@contextlib.contextmanager
def _staging(conn: psycopg.Connection) -> Iterator[None]:
    memory = conn.execute(
        "select current_setting('work_mem'), current_setting('maintenance_work_mem')"
    ).fetchone()
    set_memory = "select set_config('work_mem', %s, false), set_config('maintenance_work_mem', %s, false)"
    conn.execute(set_memory, [_WORK_MEM, _WORK_MEM])
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("drop table if exists pg_temp.incoming, pg_temp.staged")
            conn.execute(set_memory, memory)


def _stage(conn: psycopg.Connection, rows: Iterator[str]) -> None:
    conn.execute(
        'create temporary table incoming (line bigint, code text collate "C", phone text, email text, state text,'
        " hash text) on commit preserve rows"
    )
    with conn.cursor().copy("copy incoming from stdin") as copy:
        while block := "".join(itertools.islice(rows, _LINES)):
            copy.write(block)


def _sort(conn: psycopg.Connection, refuse: Callable[[int, str], None]) -> _Staged:
    """The rows sorted by code; of those with one code the first stays."""
    conn.execute(
        "create temporary table staged on commit preserve rows as"
        " select code, line, phone, email, state, hash,"
        " coalesce(code = lag(code) over (order by code, line), false) as again from incoming"
    )
    conn.execute("drop table incoming")
    conn.execute("create index on staged (code)")
    conn.execute("analyze staged")
    [[rows, again, hashes]] = conn.execute(
        "select count(*), count(*) filter (where again), count(*) filter (where hash <> '') from staged"
    ).fetchall()
    if again:
        for line, first in conn.cursor().stream(
            "select r.line, f.line from staged r join staged f using (code) where r.again and not f.again"
            " and (r.phone, r.email, r.state, r.hash) <> (f.phone, f.email, f.state, f.hash) order by r.line"
        ):
            refuse(line, f"the same code stands in line {first} with other values; put it in once")
        conn.execute("delete from staged where again")
    return _Staged(rows - again, hashes)


# Both sides of a join are bounded: the planner does not carry a range from one to the other.
_NEW = """
from staged s where s.code > %(after)s and s.code <= %(upto)s and not exists
    (select from account a where a.code = s.code and a.code > %(after)s and a.code <= %(upto)s)
"""

_ADD = (
    f"insert into account (code, phone, email, state) select code, phone, email, state {_NEW} order by code"
)

_ADD_HASHES = f"""
insert into taken_over_password (code, hash) select code, hash {_NEW} and s.hash <> '' and s.state <> 'closed'
order by code on conflict (code) do update set hash = excluded.hash, taken_at = excluded.taken_at
"""

# Nor is it kept for a closed account.
_BRINGS_HASH = """(s.hash <> '' and s.state <> 'closed'
    and not exists (select from login l where l.account_id = s.code)
    and not exists (select from taken_over_password t where t.code = s.code and t.hash = s.hash))"""

_DIFFERS = "((a.email, a.state) <> (s.email, s.state) or %(update_phones)s and a.phone <> s.phone)"

_DIFFERENT = f"""
select code, {_DIFFERS} or {_BRINGS_HASH}, a.phone <> s.phone from staged s join account a using (code)
where s.code > %(after)s and s.code <= %(upto)s and a.code > %(after)s and a.code <= %(upto)s
and ((a.phone, a.email, a.state) <> (s.phone, s.email, s.state) or {_BRINGS_HASH})
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

# What nobody has used yet ends with the account.
_END_HASHES = """
delete from taken_over_password t using staged s
where s.code = any(%(codes)s) and t.code = s.code and s.state = 'closed'
"""

_BRING_HASHES = f"""
insert into taken_over_password (code, hash) select code, hash from staged s
where s.code = any(%(codes)s) and {_BRINGS_HASH}
on conflict (code) do update set hash = excluded.hash, taken_at = excluded.taken_at
returning code
"""  # noqa: S608 - no values

_CHANGE = f"""
update account a set email = s.email, state = s.state,
    phone = case when %(update_phones)s then s.phone else a.phone end
from staged s where s.code = any(%(codes)s) and a.code = s.code and {_DIFFERS}
returning s.code
"""  # noqa: S608 - no values


def _store(
    conn: psycopg.Connection,
    result: Imported,
    staged: _Staged,
    update_phones: bool,
    stored: Callable[[int, int], object],
) -> None:
    # Planned each time: a plan made for the first slices would be kept while the table grows a thousandfold.
    execute = functools.partial(conn.execute, prepare=False)
    after = ""
    while True:
        [[upto, rows]] = execute(
            "select max(code), count(*) from (select code from staged where code > %s order by code limit %s) _",
            [after, _SLICE],
        ).fetchall()
        if not rows:
            return
        between = {"after": after, "upto": upto, "update_phones": update_phones}
        added = _add(conn, staged, between)
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
        stored(rows, staged.rows)
        after = upto


def _add(conn: psycopg.Connection, staged: _Staged, between: Mapping[str, object]) -> int:
    """Add those accounts of the slice that are new, with their hashes; returns how many they were."""
    while True:
        try:
            with conn.transaction():
                # What is new to one statement is new to the other: nobody has signed in to it yet.
                conn.execute("set transaction isolation level repeatable read")
                if staged.hashes:
                    conn.execute(_ADD_HASHES, between, prepare=False)
                return conn.execute(_ADD, between, prepare=False).rowcount
        except (psycopg.errors.UniqueViolation, psycopg.errors.SerializationFailure):
            # Somebody else has just added one of them, which is seen now. To be ready for that in the statement (on
            # conflict) would cost every row a third more.
            continue


def _change(conn: psycopg.Connection, codes: Sequence[str], update_phones: bool) -> int:
    """Change these accounts where they still differ from what is staged; returns how many did."""
    parameters = {"codes": codes, "update_phones": update_phones}
    execute = functools.partial(conn.execute, params=parameters, prepare=False)
    with conn.transaction():
        # Whoever decides about these accounts right now finishes first, and sees the change afterwards.
        locks.take(conn, (locks.account_key(code) for code in codes))
        for statement in (_END_CASES, _END_SIGN_INS, _END_HASHES):
            execute(statement)
        changed = {*execute(_BRING_HASHES).fetchall(), *execute(_CHANGE).fetchall()}
    return len(changed)


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
        if name not in (*COLUMNS, PASSWORD):
            # Where there is no header this is a person's data, which a message must not show.
            shown = f", {name!r}," if not lacking and _COLUMN_NAME.fullmatch(name) else ""
            problems.append(f"column {position}{shown} is none of them")
    problems += [f"it has the column {name} twice" for name in (*COLUMNS, PASSWORD) if names.count(name) > 1]
    if problems:
        raise WrongFile(
            f"The first line must name the columns {','.join(COLUMNS)}; " + "; ".join(problems[:8]) + "."
        )
    return _Layout(delimiter, tuple(names.index(name) for name in (*COLUMNS, PASSWORD) if name in names))


def _rows(lines: Iterable[str], layout: _Layout, refuse: Callable[[int, str], None]) -> Iterator[str]:
    """The good rows as COPY reads them, each with its line."""
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
                yield (
                    f"{number}\t{match[code]}\t+84{match[phone][-9:]}\t{match[email]}\t{match[state]}\t{taken}\n"
                )
            continue
        row = _parse(line, layout)
        if isinstance(row, str):
            refuse(number, row)
        elif row is not None:
            yield "\t".join((str(number), *row)).replace("\\", "\\\\") + "\n"


def _parse(line: str, layout: _Layout) -> tuple[str, ...] | str | None:
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
