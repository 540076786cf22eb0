"""The two queues: accept → claim → settle, in set-based SQL.

Inbox: `accept` stores what a carrier delivered (only then is it acknowledged); `claim_inbox` takes a batch
for the transaction that decides it, so a crash gives it back by itself. Outbox: `claim_outbox` takes rows
with a lease, because what follows crosses a network (a decider that sends itself writes its replies as claimed, see
service/reissue.py); `settle_outbox` writes what became of them. A claimed row whose lease has run out is due again,
whoever claimed it.

Every function works in the caller's transaction unless it says otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from itertools import starmap
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import args_row

from caplai.store.db import array, named_lock

_ACCEPT, _RECEIPTS = 5, 7  # kinds of locks, see named_lock
REDELIVERY = timedelta(seconds=60)
"""The same message may come again this long after an acknowledgement that may not have arrived (service.md)."""
INBOX_CHANNEL = "caplai_inbox"
OUTBOX_CHANNEL = "caplai_outbox"
OTP = "otp"
"""The kind of an outbox row that carries the one-time code of a forgotten password."""


class Suspect(IntEnum):
    """Whether an arriving message may be one that we have stored already."""

    NO = 0
    UNCONFIRMED = 1
    """Its twin may stand among what another connection stored and perhaps never acknowledged."""
    ANY = 2
    """Its twin may stand anywhere: we know of one whose acknowledgement was late or never sent."""


@dataclass(slots=True, repr=False)
class Arrival:
    """A message, or a part of one, as a carrier delivered it. `text` is None for a part."""

    source: str
    source_ton: int
    source_npi: int
    destination: str
    coding: int
    text: str | None
    reference: int = 0
    total: int = 1
    number: int = 1
    payload: bytes = b""
    suspect: Suspect = Suspect.NO


@dataclass(slots=True, repr=False)
class Waiting:
    """A claimed inbox row: its fields in the order of _WAITING."""

    id: int
    received_at: datetime
    link: str
    source: str
    source_ton: int
    source_npi: int
    destination: str
    text: str
    waited: float
    """Seconds since it arrived, by the database's clock."""


class Accepted(NamedTuple):
    """What became of a batch of arrivals."""

    at: datetime
    """The `received_at` of all of them."""
    ids: list[int]
    """The inbox ids of the messages that are new; a part of a long message that still waits has none."""
    known: int
    """How many arrivals were redeliveries of what was stored already."""


@dataclass(slots=True, repr=False)
class Due:
    """A claimed outbox row, with its wording and the frozen inputs of its case's password (if it has one): its
    fields in the order of _DUE.
    """

    id: int
    inbox_id: int | None
    kind: str
    link: str
    sender: str
    destination: str
    destination_ton: int | None
    destination_npi: int | None
    attempts: int
    created_at: datetime
    wording: str
    until: datetime | None
    account: str | None
    case_id: UUID | None
    key: str | None
    version: int | None
    length: int | None
    alphabet: str | None
    dead: bool
    """Whether its password has ended or expired: nobody is helped by it any more."""
    age: float
    """Seconds since the message arrived that it answers (or since it was made), by the database's clock."""
    recovery_id: UUID | None = None
    """Of an OTP: its request. Then `account` is the code as it was asked for, `key` and `version` are the OTP's."""


@dataclass(slots=True)
class Settled:
    """What became of a claimed outbox row."""

    id: int
    state: str
    """An Outbox.State: sent, failed, expired, or ready to be tried again."""
    status: int | None = None
    message_id: str | None = None
    again_in: float = 0.0
    """If it is ready: seconds until it is due."""
    tried: bool = True
    """Whether it was submitted; a claim that came to nothing is no attempt."""


# --- inbox -----------------------------------------------------------------------------------------

# A suspect is the same message as a stored one with the same link, addresses and body, if that one's
# acknowledgement may not have arrived; or if that one came by another bind while the suspect waited here: because we
# did not answer, the carrier delivered it there.
_TWIN = """
    stored.link = %(link)s and stored.source = a.source and stored.destination = a.destination
    and stored.received_at > now() - %(redelivery)s
    and (a.suspect = 2 or (
        stored.session is distinct from %(session)s
        and stored.received_at > least(
            now() - %(waited)s * interval '1 second',
            coalesce((select s.confirmed_at from link_session s where s.id = stored.session), '-infinity'))))
"""

_INSERT_INBOX = f"""
insert into inbox (received_at, link, session, source, source_ton, source_npi, destination, coding, text)
select now(), %(link)s, %(session)s, source, source_ton, source_npi, destination, coding, text
from unnest(%(source)s::text[], %(source_ton)s::smallint[], %(source_npi)s::smallint[], %(destination)s::text[],
            %(coding)s::smallint[], %(text)s::text[], %(suspect)s::smallint[])
     with ordinality as a (source, source_ton, source_npi, destination, coding, text, suspect, nth)
where a.suspect = 0 or not exists (select from inbox stored where {_TWIN} and stored.text = a.text)
order by nth
returning id
"""  # noqa: S608

_INSERT_SEGMENTS = f"""
insert into segment (received_at, link, session, source, source_ton, source_npi, destination, coding,
                     reference, total, number, payload)
select now(), %(link)s, %(session)s, source, source_ton, source_npi, destination, coding,
       reference, total, number, payload
from unnest(%(source)s::text[], %(source_ton)s::smallint[], %(source_npi)s::smallint[], %(destination)s::text[],
            %(coding)s::smallint[], %(reference)s::int[], %(total)s::smallint[], %(number)s::smallint[],
            %(payload)s::bytea[], %(suspect)s::smallint[])
     as a (source, source_ton, source_npi, destination, coding, reference, total, number, payload, suspect)
where a.suspect = 0 or not exists (
    select from segment stored where {_TWIN} and stored.reference = a.reference and stored.total = a.total
    and stored.number = a.number and stored.payload = a.payload)
on conflict (link, source, destination, reference, total, number) where joined_at is null do nothing
"""  # noqa: S608

# The sets that are whole (or whose time is up), marked as joined: they stay a while to recognise a redelivery.
_JOIN_SEGMENTS = """
with ready as (
    select link, source, destination, reference, total
    from segment where joined_at is null {which}
    group by link, source, destination, reference, total
    having count(*) = total or min(received_at) < now() - %(patience)s
), taken as (
    select segment.id from segment join ready using (link, source, destination, reference, total)
    where joined_at is null for update skip locked
)
update segment set joined_at = now() from taken where segment.id = taken.id
returning link, session, source, source_ton, source_npi, destination, coding, reference, total, number, payload
"""


_LINK = " and link = %(link)s"
_FROM_THESE = f"{_LINK} and source = any(%(source)s)"


def accept(
    conn: psycopg.Connection,
    link: str,
    session: int | None,
    arrivals: Sequence[Arrival],
    join,
    waited: float = 0.0,
) -> Accepted:
    """Store what arrived by `link`, the first of it `waited` seconds ago; committed when this returns. Redeliveries
    fall out, parts are joined.

    `join(coding, parts: dict[int, bytes], total) -> str` makes the text of a long message; it is the
    caller's, who knows the link's alphabet. Raises psycopg.Error when nothing is certain: the carrier must
    keep the messages and send them again.
    """
    ids: list[int] = []
    known = 0
    with conn.transaction():
        # An engine that died may have left a commit under way: whoever looks for a twin waits for it.
        how = "pg_advisory_xact_lock" if any(a.suspect for a in arrivals) else "pg_advisory_xact_lock_shared"
        row = conn.execute(f"select now(), {how}(%s)", [named_lock(_ACCEPT, link)]).fetchone()
        whole = [arrival for arrival in arrivals if arrival.text is not None]
        parts = [arrival for arrival in arrivals if arrival.text is None]
        if parts:
            cursor = conn.execute(_INSERT_SEGMENTS, _columns(link, session, parts, _PART_COLUMNS, waited))
            known += len(parts) - cursor.rowcount
            sources = [part.source for part in parts]
            whole += _joined(conn, join, _FROM_THESE, link=link, source=sources)
        if whole:
            ids = _insert(conn, link, session, whole, waited)
            known += len(whole) - len(ids)
        conn.execute(f"notify {INBOX_CHANNEL}")
    assert row is not None
    return Accepted(row[0], ids, known)


def _insert(
    conn: psycopg.Connection,
    link: str,
    session: int | None,
    arrivals: Sequence[Arrival],
    waited: float = 0.0,
) -> list[int]:
    cursor = conn.execute(_INSERT_INBOX, _columns(link, session, arrivals, _TEXT_COLUMNS, waited))
    return [id_ for (id_,) in cursor.fetchall()]


def sweep_segments(conn: psycopg.Connection, link: str, join, patience: timedelta) -> list[int]:
    """Join what waited longer than `patience` with the parts that came, and forget what was joined long ago.

    Parts that two connections stored at the same moment are found here too. Returns the inbox ids of what was
    joined. Opens its own transaction.
    """
    ids: list[int] = []
    conn.execute("delete from segment where joined_at < now() - interval '10 minutes'")
    with conn.transaction():
        # Every engine sweeps. Two that join the same set at once would take some of its rows each.
        conn.execute("select pg_advisory_xact_lock(%s)", [named_lock(_ACCEPT, link)])
        late = _joined(conn, join, _LINK, patience=patience, link=link)
        if late:
            ids = _insert(conn, link, None, late)
            conn.execute(f"notify {INBOX_CHANNEL}")
    return ids


_ADDRESS_COLUMNS = ("source", "source_ton", "source_npi", "destination", "coding", "suspect")
_TEXT_COLUMNS = (*_ADDRESS_COLUMNS, "text")
_PART_COLUMNS = (*_ADDRESS_COLUMNS, "reference", "total", "number", "payload")


def _columns(
    link: str,
    session: int | None,
    arrivals: Sequence[Arrival],
    names: Iterable[str],
    waited: float = 0.0,
) -> dict[str, Any]:
    columns: dict[str, Any] = {name: array(map(attrgetter(name), arrivals)) for name in names}
    return {**columns, "link": link, "session": session, "redelivery": REDELIVERY, "waited": waited}


def _joined(
    conn: psycopg.Connection, join, which: str, patience=timedelta(days=3650), **values
) -> list[Arrival]:
    rows = conn.execute(_JOIN_SEGMENTS.format(which=which), {"patience": patience, **values}).fetchall()
    sets: dict[tuple, list[tuple]] = {}
    for row in rows:
        sets.setdefault((row[0], row[2], row[5], row[7], row[8]), []).append(row)
    joined = []
    for (_, source, destination, _, total), found in sets.items():
        first = min(found, key=lambda row: row[9])
        text = join(first[6], {row[9]: bytes(row[10]) for row in found}, total)
        joined.append(Arrival(source, first[3], first[4], destination, first[6], text))
    return joined


# --- inbox, one request at a time: whoever asks waits for the answer -------------------------------

_WAITING = (
    "id, received_at, link, source, source_ton, source_npi, destination, text,"
    " extract(epoch from clock_timestamp() - received_at)::float as waited"
)


def accept_request(
    conn: psycopg.Connection, link: str, request_id: str | None, arrival: Arrival
) -> tuple[Waiting, bool]:
    """Store one message that a request brought, and say whether that is new.

    The same `request_id` again is the same request, also while the first is still under way (it is waited for): then
    the message comes back as it was stored, whatever `arrival` says. Needs a transaction.
    """
    values = {**_columns(link, None, [arrival], _TEXT_COLUMNS), "request": request_id}
    with conn.cursor(row_factory=args_row(Waiting)) as cursor:
        stored = cursor.execute(_INSERT_REQUEST, values).fetchone()
    if stored is not None:
        return stored, True
    assert request_id is not None
    known = find_request(conn, link, request_id)
    assert known is not None
    return known, False


_INSERT_REQUEST = f"""
insert into inbox (link, request_id, source, source_ton, source_npi, destination, coding, text)
select %(link)s, %(request)s, source, source_ton, source_npi, destination, coding, text
from unnest(%(source)s::text[], %(source_ton)s::smallint[], %(source_npi)s::smallint[], %(destination)s::text[],
            %(coding)s::smallint[], %(text)s::text[])
     as a (source, source_ton, source_npi, destination, coding, text)
on conflict (link, request_id) where request_id is not null do nothing
returning {_WAITING}
"""  # noqa: S608


def find_request(conn: psycopg.Connection, link: str, request_id: str) -> Waiting | None:
    """The message that a request of `link` brought before."""
    with conn.cursor(row_factory=args_row(Waiting)) as cursor:
        return cursor.execute(
            f"select {_WAITING} from inbox where link = %s and request_id = %s",  # noqa: S608
            [link, request_id],
        ).fetchone()


def lock_parts(conn: psycopg.Connection, link: str, part: Arrival) -> None:
    """Wait until nobody else stores parts of the same message or joins what waited too long; needs a transaction,
    and holds until it ends.
    """
    name = f"{link}/{part.source}/{part.destination}/{part.reference}/{part.total}"
    conn.execute(
        "select pg_advisory_xact_lock_shared(%s), pg_advisory_xact_lock(%s)",
        [named_lock(_ACCEPT, link), named_lock(_ACCEPT, name)],
    )


def accept_part(
    conn: psycopg.Connection, link: str, request_id: str | None, part: Arrival, join
) -> Arrival | None:
    """Store a part that a request brought; the whole message if this was the last one that it lacked.

    Needs lock_parts(). `join` as for accept().
    """
    values = {**_columns(link, None, [part], _PART_COLUMNS), "session": None}
    conn.execute(_INSERT_SEGMENTS, values)
    which = {
        "source": part.source,
        "destination": part.destination,
        "reference": part.reference,
        "total": part.total,
        "number": part.number,
    }
    if request_id is not None:
        conn.execute(_NAME_PART, {"link": link, "request": request_id, **which})
    joined = _joined(conn, join, _LINK + _THIS_SET, link=link, **which)
    return joined[0] if joined else None


_THIS_SET = (
    " and source = %(source)s and destination = %(destination)s and reference = %(reference)s"
    " and total = %(total)s"
)
_NAME_PART = f"""
update segment set request_id = %(request)s
where joined_at is null {_LINK} {_THIS_SET} and number = %(number)s and request_id is null
"""  # noqa: S608


def find_part(conn: psycopg.Connection, link: str, request_id: str) -> Arrival | None:
    """The part that a request of `link` brought before (they are kept for ten minutes after they were joined)."""
    row = conn.execute(
        "select source, source_ton, source_npi, destination, coding, reference, total, number, payload"
        " from segment where link = %s and request_id = %s",
        [link, request_id],
    ).fetchone()
    if row is None:
        return None
    source, ton, npi, destination, coding, reference, total, number, payload = row
    return Arrival(source, ton, npi, destination, coding, None, reference, total, number, bytes(payload))


def claim_inbox(conn: psycopg.Connection, count: int, after: int = 0) -> list[Waiting]:
    """Up to `count` undecided messages in the order of arrival, after the id `after`, locked until the
    transaction ends.
    """
    rows = conn.execute(
        f"select {_WAITING} from inbox"  # noqa: S608
        " where outcome is null and error is null and id > %s order by id limit %s for update skip locked",
        [after, count],
    ).fetchall()
    return list(starmap(Waiting, rows))


def list_parked(conn: psycopg.Connection) -> list[tuple[int, datetime, str]]:
    """Id, time of arrival and error of each parked message, the oldest first."""
    return conn.execute(
        "select id, received_at, error from inbox where outcome is null and error is not null order by id"
    ).fetchall()


def unpark(conn: psycopg.Connection) -> int:
    """Let parked messages be decided after all; returns how many there were."""
    parked = conn.execute(
        "update inbox set error = null where outcome is null and error is not null"
    ).rowcount
    conn.execute(f"notify {INBOX_CHANNEL}")
    return parked


def park(conn: psycopg.Connection, inbox_id: int, error: str) -> None:
    """Set a message aside that our own code fails on. `error` names class and place, never a text."""
    conn.execute("update inbox set error = %s where id = %s and outcome is null", [error, inbox_id])


# --- outbox ----------------------------------------------------------------------------------------

_DUE = """
select o.id, o.inbox_id, o.kind, o.link, o.sender, o.destination, o.destination_ton, o.destination_npi,
       o.attempts, o.created_at,
       w.text as wording, o.until, o.account, o.case_id, c.key, c.version, c.length, c.alphabet,
       coalesce(c.ended_at is not null or c.expires_at <= now(), false) as dead,
       extract(epoch from clock_timestamp() -
           coalesce((select i.received_at from inbox i where i.id = o.inbox_id), o.created_at))::float as age
from {rows} o join wording w on w.id = o.wording
left join reissue_case c on c.account = o.account and c.id = o.case_id
"""

_CLAIM_OUTBOX = f"""
with due as (
    select id from outbox where link = %(link)s and state in ('ready', 'claimed') and due_at <= now()
    order by due_at limit %(count)s for update skip locked
), claimed as (
    update outbox set state = 'claimed', claimed_by = %(engine)s, attempts = attempts + 1, due_at = now() + %(lease)s
    from due where outbox.id = due.id
    returning outbox.*
)
{_DUE.format(rows="claimed")}
order by o.id
"""  # noqa: S608


def claim_outbox(conn: psycopg.Connection, link: str, engine: str, count: int, lease: timedelta) -> list[Due]:
    """Up to `count` messages due on `link`, ours for `lease`; after it they are due again."""
    claim = {"link": link, "engine": engine, "count": count, "lease": lease}
    dues = list(starmap(Due, conn.execute(_CLAIM_OUTBOX, claim).fetchall()))
    otps = {due.id: due for due in dues if due.kind == OTP}
    if otps:
        found = conn.execute(_OTPS, [array(otps)]).fetchall()
        for id_, recovery, code, key, version, dead in found:
            due = otps[id_]
            due.recovery_id, due.account, due.key, due.version, due.dead = recovery, code, key, version, dead
    return dues


# A statement of its own, so that a batch without any pays nothing for it. Where the request is gone, so is its time.
_OTPS = """
select o.id, o.recovery_id, r.code, r.key, r.version,
       coalesce(r.ended_at is not null or r.expires_at <= clock_timestamp(), true)
from outbox o left join recovery r on r.id = o.recovery_id where o.id = any(%s::bigint[])
"""


def answer_name(inbox_id: int) -> str:
    """The `message_id` of a reply that went in the answer to its request: by it the reply is found again."""
    return f"answer:{inbox_id}"


def find_answer(conn: psycopg.Connection, link: str, inbox_id: int) -> Due | None:
    """The reply that answered a request of `link` in its body; None where there was silence."""
    with conn.cursor(row_factory=args_row(Due)) as cursor:
        return cursor.execute(
            _DUE.format(rows="outbox") + " where o.link = %s and o.message_id = %s",
            [link, answer_name(inbox_id)],
        ).fetchone()


_SETTLE_OUTBOX = """
update outbox set
    state = s.state,
    settled_at = case when s.state <> 'ready' then now() end,
    due_at = case when s.state = 'ready' then now() + s.again_in * interval '1 second' else due_at end,
    attempts = attempts - case when s.tried then 0 else 1 end,
    claimed_by = null, status = coalesce(s.status, outbox.status), message_id = s.message_id
from unnest(%(id)s::bigint[], %(state)s::text[], %(status)s::bigint[], %(message_id)s::text[], %(again_in)s::float[],
            %(tried)s::bool[]) as s (id, state, status, message_id, again_in, tried)
where outbox.id = s.id and outbox.claimed_by = %(engine)s
"""
# (Only a claimed row has a claimer. To ask for the state as well would let the planner walk through all that wait.)


# A receipt and the answer that names its message, stored at the same moment, would not see each other.
_LOCK_RECEIPTS = f"select pg_advisory_xact_lock({named_lock(_RECEIPTS, '')})"

# A receipt may come before the answer that names the message (jasmin #423).
_MATCH_EARLY_RECEIPTS = """
with early as (
    update receipt set outbox_id = o.id from outbox o
    where o.id = any(%s::bigint[]) and receipt.link = o.link and receipt.outbox_id is null
    and receipt.received_at > now() - interval '1 hour' and o.message_id = any(receipt.message_ids)
    returning o.id, receipt.state
)
update outbox set receipt = early.state from early where outbox.id = early.id
"""


def settle_outbox(conn: psycopg.Connection, engine: str, settled: Sequence[Settled]) -> int:
    """Write what became of rows that `engine` had claimed; rows that others hold by now stay as they are. Returns how
    many were written.
    """
    names = ("id", "state", "status", "message_id", "again_in", "tried")
    columns = {name: array(map(attrgetter(name), settled)) for name in names}
    named = [row.id for row in settled if row.message_id is not None]
    with conn.transaction():
        if named:
            conn.execute(_LOCK_RECEIPTS)
        written = conn.execute(_SETTLE_OUTBOX, {**columns, "engine": engine}).rowcount
        if named:
            conn.execute(_MATCH_EARLY_RECEIPTS, [named])
    return written


def release_outbox(conn: psycopg.Connection, link: str) -> None:
    """What anybody had claimed on `link` is due at once. Only for whoever has just become its one holder."""
    conn.execute("update outbox set due_at = now() where link = %s and state = 'claimed'", [link])


def release_unheld(conn: psycopg.Connection, link: str, engine: str, held: Iterable[int]) -> None:
    """What `engine` has claimed on `link` and does not know of is due at once: the answer to its claim was lost."""
    conn.execute(
        "update outbox set due_at = now() where link = %s and state = 'claimed' and claimed_by = %s"
        " and due_at > now() and id <> all(%s::bigint[])",
        [link, engine, array(held)],
    )


def intern(conn: psycopg.Connection, texts: Iterable[str]) -> dict[str, int]:
    """The ids of these wordings, added where they are new.

    In a transaction it may wait for another one that adds the same: take all other locks before.
    """
    wanted = sorted(set(texts))
    conn.execute(
        "insert into wording (text) select unnest(%s::text[]) on conflict (text) do nothing", [wanted]
    )
    return dict(
        conn.execute("select text, id from wording where text = any(%s::text[])", [wanted]).fetchall()
    )


# --- receipts --------------------------------------------------------------------------------------


def accept_receipts(conn: psycopg.Connection, link: str, receipts: Sequence[Mapping[str, Any]]) -> int:
    """Store delivery receipts as they came, and match them to what was sent where that can be done.

    Each has `message_ids` (the id in every form the carrier might have meant), `state` and `error`, raw.
    Returns how many matched nothing (yet). Commits when it returns.
    """
    unmatched = 0
    with conn.transaction():
        conn.execute(_LOCK_RECEIPTS)
        for receipt in receipts:
            cursor = conn.execute(
                """
                with matched as (
                    update outbox set receipt = %(state)s where id = (
                        select id from outbox where link = %(link)s and message_id = any(%(message_ids)s::text[])
                        order by id desc limit 1)
                    returning id)
                insert into receipt (link, message_ids, state, error, outbox_id)
                values (%(link)s, %(message_ids)s::text[], %(state)s, %(error)s, (select id from matched))
                returning outbox_id
                """,
                {"link": link, **receipt},
            )
            unmatched += cursor.fetchone() == (None,)
    return unmatched


# --- sessions of the links -------------------------------------------------------------------------


def open_session(conn: psycopg.Connection, link: str, engine: str) -> int:
    """A new bind of `engine` to `link`; returns its id."""
    row = conn.execute(
        "insert into link_session (link, engine) values (%s, %s) returning id", [link, engine]
    ).fetchone()
    assert row is not None
    return row[0]


def touch_session(
    conn: psycopg.Connection, session: int, confirmed_at: datetime | None, ended: bool = False
) -> None:
    """The bind lives (or has ended); what arrived up to `confirmed_at` is known to be acknowledged. Late calls undo
    nothing.
    """
    conn.execute(
        "update link_session set seen_at = now(), confirmed_at = greatest(confirmed_at, %s),"
        " ended_at = coalesce(ended_at, case when %s then now() end) where id = %s",
        [confirmed_at, ended, session],
    )
