"""A message's whole life, for an operator on a bad day. Reads only; changes nothing.

What comes out may be shown: phones and codes are masked, no text is repeated (it holds a code), and of a
password there is nothing to repeat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg

from caplai.domain import msisdn
from caplai.domain.policy import Outcome
from caplai.store import queues

_NEWEST = 200_000
"""So many of the newest replies are looked through for those that came to nothing."""
_DECIDING = timedelta(seconds=60)
"""No transaction that decides a message takes longer: its replies are that old when it is decided, at most."""


@dataclass(frozen=True, slots=True)
class Case:
    """The case that a message opened or joined."""

    id: UUID
    account: str
    phone: str
    channel: str
    opened_at: datetime
    expires_at: datetime
    texts: int
    ended_at: datetime | None
    ended_as: str | None
    opened_by_this: bool
    lives: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """A message to a phone that answers it."""

    id: int
    kind: str
    link: str
    phone: str
    created_at: datetime
    state: str
    attempts: int
    status: int | None
    """The SMSC's last command_status, or an aggregator's HTTP status."""
    claimed_by: str | None
    due_at: datetime
    settled_at: datetime | None
    named: bool
    """Whether the SMSC's message id is kept."""
    at_once: bool
    """Whether it went in the answer to the request that brought the message."""
    receipt: str | None
    receipt_at: datetime | None


@dataclass(frozen=True, slots=True)
class Message:
    """A message from a phone, with all that came of it."""

    id: int
    received_at: datetime
    link: str
    request_id: str | None
    engine: str | None
    """Which engine stored it; None where a web server did, or where it is not known any more."""
    phone: str
    destination: str
    characters: int | None
    """The length of its text; None once that has been removed."""
    parts: int
    """Of a long message, those that are still kept; 0 for a short one and some minutes later."""
    decided_at: datetime | None
    outcome: str | None
    error: str | None
    case: Case | None
    replies: Sequence[Reply]

    @property
    def waits_for(self) -> str | None:
        """What it waits for, or None if nothing will follow by itself or needs to."""
        if self.outcome is None:
            return "a person: caplai's own code failed on it" if self.error else "an engine to decide it"
        if any(reply.state in ("ready", "claimed") for reply in self.replies):
            return "its link to send the reply"
        return None


@dataclass(frozen=True, slots=True)
class Line:
    """A message or a reply in a list. `id` is the message's; None for a reply that answers none."""

    id: int | None
    at: datetime
    link: str
    phone: str
    outcome: str | None
    reply: str | None
    """The state of its newest reply."""
    status: int | None
    error: str | None


def message(conn: psycopg.Connection, id_: int) -> Message | None:
    """The life of the message with this id, if there is one."""
    found = conn.execute(
        "select i.received_at, i.link, i.request_id, s.engine, i.source, i.source_ton, i.destination,"
        " nullif(length(i.text), 0), i.decided_at, i.outcome, i.error, i.case_id,"
        " (select count(*) from segment p where p.link = i.link and p.source = i.source"
        "   and p.destination = i.destination and p.joined_at = i.received_at)"  # by one transaction
        " from inbox i left join link_session s on s.id = i.session where i.id = %s",
        [id_],
    ).fetchone()
    if found is None:
        return None
    (
        received_at,
        link,
        request,
        engine,
        source,
        ton,
        destination,
        size,
        decided_at,
        outcome,
        error,
        case,
        parts,
    ) = found
    replies = _replies(conn, id_, decided_at)
    return Message(
        id_,
        received_at,
        link,
        request,
        engine,
        _masked_address(source, ton),
        destination,
        size,
        parts,
        decided_at,
        outcome,
        error,
        _case(conn, case, outcome, replies) if case is not None else None,
        replies,
    )


def of_request(conn: psycopg.Connection, link: str, request_id: str) -> int | None:
    """The id of the message that an aggregator sent by `link` under this id of its own."""
    found = conn.execute(
        "select id from inbox where link = %s and request_id = %s", [link, request_id]
    ).fetchone()
    return found[0] if found else None


def of_phone(conn: psycopg.Connection, phone: str, count: int = 20) -> list[Line]:
    """The last messages of a phone (E.164), the newest first."""
    return _lines(conn, [phone], count)


def of_account(conn: psycopg.Connection, code: str, count: int = 20) -> list[Line]:
    """The last messages of the phones that an account has, or had cases with, the newest first."""
    phones = conn.execute(
        "select phone from account where code = %(code)s"
        " union select phone from reissue_case where account = %(code)s and phone <> ''",
        {"code": code},
    ).fetchall()
    return _lines(conn, [phone for (phone,) in phones], count)


_PARKED = """
select i.id, i.received_at, i.link, i.source, i.source_ton, i.outcome, null, null, i.error
from inbox i where i.outcome is null and i.error is not null order by i.id desc limit %(count)s
"""
_STUCK = """
select o.inbox_id, o.created_at, o.link, o.destination, 1, o.kind, o.state, o.status, null
from outbox o where o.state in ('ready', 'claimed') and o.created_at < now() - interval '10 minutes'
order by o.id desc limit %(count)s
"""
_FAILED = """
select o.inbox_id, o.created_at, o.link, o.destination, 1, o.kind, o.state, o.status, null
from (select * from outbox order by id desc limit %(newest)s) o where o.state = 'failed'
order by o.id desc limit %(count)s
"""


def in_trouble(conn: psycopg.Connection, count: int = 100) -> list[Line]:
    """What needs a person, the newest first of each kind: parked messages, replies that have waited for ten
    minutes, replies that the carrier refused for good (among the newest 200,000).
    """
    values = {"count": count, "newest": _NEWEST}
    return [
        _line(row) for query in (_PARKED, _STUCK, _FAILED) for row in conn.execute(query, values).fetchall()
    ]


def _lines(conn: psycopg.Connection, phones: Sequence[str], count: int) -> list[Line]:
    # As carriers and aggregators write it; the index is on what they wrote.
    written = [form for phone in phones for form in written_forms(phone)]
    rows = conn.execute(
        "select id, received_at, link, source, source_ton, outcome, error, decided_at from inbox"
        " where source = any(%s) order by received_at desc limit %s",
        [written, count],
    ).fetchall()
    lines = []
    for id_, at, link, source, ton, outcome, error, decided_at in rows:
        replies = _replies(conn, id_, decided_at)
        state, status = (replies[-1].state, replies[-1].status) if replies else (None, None)
        lines.append(Line(id_, at, link, _masked_address(source, ton), outcome, state, status, error))
    return lines


def written_forms(phone: str) -> tuple[str, ...]:
    """The forms in which carriers and aggregators may have written a phone (E.164) as a message's source."""
    digits = msisdn.digits(phone)
    national = digits.removeprefix("84")
    return (phone, digits, f"00{digits}", *((f"0{national}", national) if national != digits else ()))


def _line(row: tuple) -> Line:
    id_, at, link, source, ton, outcome, state, status, error = row
    return Line(id_, at, link, _masked_address(source, ton), outcome, state, status, error)


def _case(conn: psycopg.Connection, id_: UUID, outcome: str | None, replies: Sequence[Reply]) -> Case | None:
    # Cases are found by their account, which the reply has, until it is too old.
    row = conn.execute(
        "select c.account, c.phone, c.channel, c.opened_at, c.expires_at, c.texts, c.ended_at, c.ended_as,"
        " c.ended_at is null and c.expires_at > now()"
        " from outbox o join reissue_case c on c.account = o.account and c.id = o.case_id"
        " where o.id = any(%s) and c.id = %s limit 1",
        [[reply.id for reply in replies], id_],
    ).fetchone()
    if row is None:
        return None
    account, phone, channel, opened_at, expires_at, texts, ended_at, ended_as, lives = row
    return Case(
        id_,
        mask_code(account),
        msisdn.mask(phone),
        channel,
        opened_at,
        expires_at,
        texts,
        ended_at,
        ended_as,
        outcome == Outcome.ISSUED,
        lives,
    )


def _replies(conn: psycopg.Connection, inbox: int, decided_at: datetime | None) -> list[Reply]:
    if decided_at is None:
        return []
    rows = conn.execute(
        "select o.id, o.kind, o.link, o.destination, o.created_at, o.state, o.attempts, o.status,"
        " o.claimed_by, o.due_at, o.settled_at,"
        " coalesce(o.message_id <> %(answer)s, false), coalesce(o.message_id = %(answer)s, false), o.receipt,"
        " (select max(received_at) from receipt r where r.outbox_id = o.id)"
        " from outbox o where o.id >= %(from)s and o.id < %(to)s and o.inbox_id = %(inbox)s order by o.id",
        {
            "answer": queues.answer_name(inbox),
            "from": _first_from(conn, decided_at - _DECIDING),
            "to": _first_from(conn, decided_at + _DECIDING),
            "inbox": inbox,
        },
    ).fetchall()
    return [
        Reply(id_, kind, link, _masked_address(destination, msisdn.TON_INTERNATIONAL), *rest)
        for id_, kind, link, destination, *rest in rows
    ]


def _first_from(conn: psycopg.Connection, moment: datetime) -> int:
    """Where the replies begin that were written at this moment or later.

    Their ids rise with time, so they are halved until it is found: an index by message or by time would cost
    every re-issue something, and only an operator asks.
    """
    [[low, high]] = conn.execute(
        "select coalesce(min(id), 0), coalesce(max(id), 0) + 1 from outbox"
    ).fetchall()
    while low < high:
        middle = (low + high) // 2
        found = conn.execute(
            "select id, created_at >= %s from outbox where id >= %s order by id limit 1", [moment, middle]
        ).fetchone()
        if found is None or found[1]:
            high = middle
        else:
            low = found[0] + 1
    return low


def _masked_address(source: str, ton: int) -> str:
    """The sender as an operator may see it."""
    phone = msisdn.from_address(source, ton)
    return msisdn.mask(phone) if phone else "xxx"


def mask_code(code: str) -> str:
    """An account's code as an operator may see it: `0123xxx789`."""
    return f"{code[:4]}xxx{code[-3:]}" if len(code) == 10 else "xxx"
