"""Accounts come from the agency as a CSV file: read it whole, then upsert it slice by slice.

Nothing is changed until the last line was read and checked. Then the rows, staged in a temporary table and
sorted by code, are stored in slices: new accounts by one transaction, without locks; the accounts that differ in
chunks, each a transaction that takes their locks, looks again, ends their cases and updates them. So no lock
stands through more than its own thousand accounts, and the lock table never overflows.

What it costs a row decides how long a nation takes (`python -m bench import`). The rows are dealt out to the
connections that share the work, by the last digit of their code, so that each sorts and stores alone what is its own,
a core for each. What a line says is found out in accounts_file.py.

A password hash of another system is kept beside the account (`taken_over_password`) until its owner first signs in
(credentials.py). It is never taken over for an account that anybody has signed in to here: a password that was
replaced must not come back with an old file.

An address that comes with a new account is as old as can be; one that takes the place of another, or of none, is new
(`email_since`), and cannot yet do what an old one can (report.py, forgotten_mail.py).

A crash or Ctrl-C leaves the slices and chunks before it stored, every account whole and its case ended where it
had to be, and the rest as it was. The same file again stores the rest.
"""

import contextlib
import functools
import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

import psycopg

from caplai.service import locks
from caplai.service.accounts_file import BadRow, read_header, read_rows

_T = TypeVar("_T")

_LINES = 5_000  # rows sent to the staging table at once
_WORK_MEM = "128MB"
"""For the one sort. The server gives back what it does not use."""
_SLICE = 20_000
_CHUNK = 1_000
"""Accounts locked at once. The lock table of a server as it comes holds about 6,400, the engine's included."""


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
class _Staged:
    """How many rows of one connection are staged, how many of them repeat a code or may have a hash, and in the
    middle of which code they are.
    """

    rows: int
    again: int
    hashes: int
    middle: str


def import_accounts(
    conn: psycopg.Connection,
    lines: Iterable[str],
    *,
    beside: Sequence[psycopg.Connection] = (),
    update_phones: bool = False,
    report: Callable[[BadRow], object] = lambda row: None,
    stored: Callable[[int, int], object] = lambda rows, total: None,
) -> Imported:
    """Upsert the accounts of a CSV file with a header; the good rows are kept, each bad one is reported.

    Each line is a row by itself: quoted fields may hold the separator, but no line end. A phone of an existing
    account changes only with `update_phones`. An account whose phone or state changes loses its open case
    (service.md, "One case per need"). The same file twice changes nothing.

    `beside`: more connections to the same database, to share the work with: one for each core pays.
    `report` gets each refused row: the bad ones in their order, then those that repeat a code with other values.
    `stored` is told how many rows a slice stored, and of how many in all; by any thread, one at a time.

    Needs connections in autocommit, for each slice and chunk is a transaction of its own: an exception from
    anywhere leaves those before it (see the module). Raises WrongFile, and then nothing was changed.
    """
    conns = (conn, *beside)
    assert all(each.autocommit for each in conns), "each chunk needs a transaction of its own"
    result = Imported()

    def refuse(line: int, reason: str) -> None:
        result.refused += 1
        report(BadRow(line, reason))

    source = iter(lines)
    layout = read_header(next(source, ""))
    with contextlib.ExitStack() as staging:
        for each in conns:
            staging.enter_context(_staging(each))
        _stage(conns, read_rows(source, layout, refuse, len(conns)))
        parts = _at_once([functools.partial(_sort, each) for each in conns], lambda: _cancel(conns))
        if any(part.again for part in parts):
            for line, first in heapq.merge(*map(_repeated, conns)):
                refuse(line, f"the same code stands in line {first} with other values; put it in once")
        storing = _Storing(result, sum(part.rows for part in parts), update_phones, stored)
        _at_once(
            [functools.partial(storing.store, *each) for each in zip(conns, parts, strict=True)], storing.stop
        )
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


def _at_once(calls: Sequence[Callable[[], _T]], stop: Callable[[], object]) -> list[_T]:
    """Call each in a thread of its own; when one fails, or we are interrupted, `stop` is to end the others."""
    with ThreadPoolExecutor(len(calls), thread_name_prefix="import") as threads:
        futures = [threads.submit(call) for call in calls]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop()
            raise
    return [future.result() for future in futures]


def _cancel(conns: Iterable[psycopg.Connection]) -> None:
    for conn in conns:
        with contextlib.suppress(psycopg.Error):
            conn.cancel_safe(timeout=2.0)


def _stage(conns: Sequence[psycopg.Connection], rows: Iterator[tuple[int, str]]) -> None:
    with contextlib.ExitStack() as copying:
        copies = []
        for conn in conns:
            conn.execute(
                'create temporary table incoming (line bigint, code text collate "C", phone text, email text,'
                " state text, hash text) on commit preserve rows"
            )
            copies.append(copying.enter_context(conn.cursor().copy("copy incoming from stdin")))
        blocks: list[list[str]] = [[] for _ in conns]
        for part, row in rows:
            block = blocks[part]
            block.append(row)
            if len(block) == _LINES:
                copies[part].write("".join(block))
                block.clear()
        for copy, block in zip(copies, blocks, strict=True):
            copy.write("".join(block))


def _sort(conn: psycopg.Connection) -> _Staged:
    """The connection's rows sorted by code, those marked that repeat one."""
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
    middle = conn.execute("select code from staged order by code offset %s limit 1", [rows // 2]).fetchone()
    return _Staged(rows - again, again, hashes, middle[0] if middle else "")


def _repeated(conn: psycopg.Connection) -> Iterator[tuple[int, int]]:
    """The lines that repeat a code with other values, each with the line where it stood first, in their order.
    Of rows with one code the first stays.
    """
    yield from conn.cursor().stream(
        "select r.line, f.line from staged r join staged f using (code) where r.again and not f.again"
        " and (r.phone, r.email, r.state, r.hash) <> (f.phone, f.email, f.state, f.hash) order by r.line"
    )
    conn.execute("delete from staged where again")


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
    email_since = case when lower(a.email) = lower(s.email) then a.email_since else clock_timestamp() end,
    phone = case when %(update_phones)s then s.phone else a.phone end
from staged s where s.code = any(%(codes)s) and a.code = s.code and {_DIFFERS}
returning s.code
"""  # noqa: S608 - no values


class _Storing:
    """What the threads that store have in common."""

    def __init__(
        self, result: Imported, total: int, update_phones: bool, stored: Callable[[int, int], object]
    ) -> None:
        self._result = result
        self._total = total
        self._update_phones = update_phones
        self._stored = stored
        self._telling = threading.Lock()
        self._stopped = False
        self._begun = 0

    def stop(self) -> None:
        """The slices and chunks under way are the last."""
        self._stopped = True

    def store(self, conn: psycopg.Connection, staged: _Staged) -> None:
        """Store what is staged on this connection."""
        with self._telling:
            first, self._begun = not self._begun, self._begun + 1
        # Two that go through the codes side by side would wait for the same pages of the indexes.
        for after, end in [("", "~")] if first else [(staged.middle, "~"), ("", staged.middle)]:
            while not self._stopped and (upto := self._slice(conn, staged, after, end)):
                after = upto

    def _slice(self, conn: psycopg.Connection, staged: _Staged, after: str, end: str) -> str | None:
        """Store the next slice; returns its last code, None if there is none."""
        # Planned each time: a plan made for the first slices would be kept while the table grows a thousandfold.
        execute = functools.partial(conn.execute, prepare=False)
        [[upto, rows]] = execute(
            "select max(code), count(*) from"
            " (select code from staged where code > %s and code <= %s order by code limit %s) _",
            [after, end, _SLICE],
        ).fetchall()
        if not rows:
            return None
        between = {"after": after, "upto": upto, "update_phones": self._update_phones}
        added = _add(conn, staged, between)
        changed, changing, kept = 0, [], 0
        if added < rows:
            for code, changes, other_phone in execute(_DIFFERENT, between).fetchall():
                if changes:
                    changing.append(code)
                if other_phone and not self._update_phones:
                    kept += 1
        for start in range(0, len(changing), _CHUNK):
            if self._stopped:
                return None
            changed += _change(conn, changing[start : start + _CHUNK], self._update_phones)
        with self._telling:
            self._result.added += added
            self._result.changed += changed
            self._result.unchanged += rows - added - changed
            self._result.phones_kept += kept
            self._stored(rows, self._total)
        return upto


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
