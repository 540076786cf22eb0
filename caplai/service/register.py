"""Accounts come from the agency: an upsert of many, in one transaction."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import psycopg

from caplai.domain import msisdn
from caplai.service import locks

COLUMNS = ("code", "phone", "email", "state")
STATES = frozenset({"pending", "approved", "closed"})
_CODE = re.compile(r"[0-9]{10}", re.ASCII)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")


class WrongFile(Exception):
    """The file as a whole is not what an import takes; the text says what to do."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A refused row: its line in the file (the header is line 1) and the reason, without its values."""

    line: int
    reason: str


@dataclass(slots=True)
class Imported:
    """What an import did, in accounts."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    phones_kept: int = 0
    """Existing accounts whose phone differs in the file and was not changed."""
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True, repr=False)
class _Row:
    line: int
    code: str
    phone: str
    email: str
    state: str


def import_accounts(
    conn: psycopg.Connection,
    lines: Iterable[str],
    *,
    update_phones: bool = False,
    report: Callable[[BadRow], None] = lambda row: None,
) -> Imported:
    """Upsert the accounts of a CSV file with a header; the good rows are kept, each bad one is reported.

    A phone of an existing account changes only with `update_phones`. An account whose phone or state changes
    loses its open case (service.md, "One case per need"). The same file twice changes nothing. Raises
    WrongFile, and then nothing was changed.
    """
    result = Imported()

    def refuse(line: int, reason: str) -> None:
        result.bad.append(BadRow(line, reason))
        report(result.bad[-1])

    with conn.transaction():
        conn.execute(
            "create temporary table incoming (line bigint, code text, phone text, email text, state text)"
            " on commit drop"
        )
        with conn.cursor().copy("copy incoming from stdin") as copy:
            for row in _rows(lines, refuse):
                copy.write_row((row.line, row.code, row.phone, row.email, row.state))
        conn.execute("analyze incoming")
        for line, first in conn.execute(_TAKE_DOUBLES).fetchall():
            refuse(line, f"the same code stands in line {first} with other values; put it in once")
        _merge(conn, result, update_phones)
    return result


# Of rows with one code the first stays; those after it that say something else are refused.
_TAKE_DOUBLES = """
with seen as (
    select ctid, line, row_number() over same as nth, first_value(line) over same as first,
           (phone, email, state) is distinct from
           (first_value(phone) over same, first_value(email) over same, first_value(state) over same) as differs
    from incoming window same as (partition by code order by line)
), gone as (
    delete from incoming using seen where incoming.ctid = seen.ctid and seen.nth > 1
    returning seen.line, seen.first, seen.differs
)
select line, first from gone where differs order by line
"""

_DIFFERENT = """
from incoming i join account a using (code)
where (a.email, a.state) is distinct from (i.email, i.state) or (%(update_phones)s and a.phone <> i.phone)
"""


def _merge(conn: psycopg.Connection, result: Imported, update_phones: bool) -> None:
    parameters = {"update_phones": update_phones}
    total = _count(conn, "select count(*) from incoming")
    changing = [code for (code,) in conn.execute(f"select code {_DIFFERENT}", parameters).fetchall()]
    # Whoever decides about these accounts right now finishes first, and sees the change afterwards.
    locks.take(conn, (locks.account_key(code) for code in changing))
    conn.execute(
        "update reissue_case c set ended_at = now(), ended_as = 'account_changed'"
        " from incoming i join account a using (code) where c.account = code and c.ended_at is null"
        " and (a.state <> i.state or (%(update_phones)s and a.phone <> i.phone))",
        parameters,
    )
    if not update_phones:
        result.phones_kept = _count(
            conn, "select count(*) from incoming i join account a using (code) where a.phone <> i.phone"
        )
    result.changed = conn.execute(
        "update account a set email = i.email, state = i.state,"
        " phone = case when %(update_phones)s then i.phone else a.phone end"
        " from incoming i where a.code = i.code and ((a.email, a.state) is distinct from (i.email, i.state)"
        " or (%(update_phones)s and a.phone <> i.phone))",
        parameters,
    ).rowcount
    result.added = conn.execute(
        "insert into account (code, phone, email, state) select code, phone, email, state from incoming"
        " on conflict (code) do nothing"
    ).rowcount
    result.unchanged = total - result.added - result.changed


def _count(conn: psycopg.Connection, query: str) -> int:
    row = conn.execute(query).fetchone()
    assert row is not None
    return row[0]


def _rows(lines: Iterable[str], refuse: Callable[[int, str], None]) -> Iterator[_Row]:
    """The good rows. Commas or semicolons (as spreadsheets write them here) separate the columns."""
    source = iter(lines)
    header_line = next(source, "").lstrip("\ufeff")
    delimiter = ";" if ";" in header_line and "," not in header_line else ","
    header = [name.strip().lower() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
    problems = [f"it lacks the column {name}" for name in COLUMNS if name not in header]
    problems += [f"it has a column {name!r} that nobody knows" for name in header if name not in COLUMNS]
    problems += [f"it has the column {name} twice" for name in COLUMNS if header.count(name) > 1]
    if problems:
        raise WrongFile(
            f"The first line must name the columns {','.join(COLUMNS)}; " + "; ".join(problems) + "."
        )
    order = [header.index(name) for name in COLUMNS]
    reader = csv.reader(source, delimiter=delimiter)
    line = 2
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            refuse(line, f"not CSV: {error}")
            line = reader.line_num + 2
            continue
        if fields is None:
            return
        if fields:
            row = _checked(line, fields, order, refuse)
            if row is not None:
                yield row
        line = reader.line_num + 2


def _checked(
    line: int, fields: list[str], order: list[int], refuse: Callable[[int, str], None]
) -> _Row | None:
    if len(fields) != len(order):
        refuse(line, f"{len(fields)} columns instead of {len(order)}")
        return None
    code, phone, email, state = (fields[index].strip() for index in order)
    number = msisdn.parse(phone)
    state = state.lower()
    if not _CODE.fullmatch(code):
        digits = "leading zeros may be lost" if code.isdigit() and len(code) < 10 else "nothing else"
        refuse(line, f"code: must be exactly ten digits ({digits})")
    elif number is None:
        refuse(line, "phone: no number that can receive an SMS")
    elif email and not (_EMAIL.fullmatch(email) and email.isprintable() and len(email) <= 254):
        refuse(line, "email: no e-mail address")
    elif state not in STATES:
        refuse(line, f"state: must be one of {', '.join(sorted(STATES))}")
    else:
        return _Row(line, code, number, email, state)
    return None
