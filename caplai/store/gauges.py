"""How full the queues are, for monitoring: few statements, each of which reads an index and stops at a bound."""

from dataclasses import dataclass, field

import psycopg

BOUND = 10_000
"""Nothing is counted beyond this: a depth of 10,000 means that or more, its age tells the rest."""


@dataclass(slots=True)
class Depths:
    """Depths in rows, ages in seconds by the database's clock."""

    inbox: int
    inbox_age: float
    """Of the oldest message that waits to be decided."""
    parked: int
    segments: int
    open: bool
    """Whether the operator has the SMS service open."""
    guess_alarm: bool
    mail: int = 0
    """E-mails that are due, or claimed, or wait for their next attempt."""
    mail_overdue: float = 0.0
    """How long ago the first of them was due."""
    outbox: dict[str, int] = field(default_factory=dict)
    """By link: messages that are due, or claimed, or wait for their next attempt."""
    outbox_overdue: dict[str, float] = field(default_factory=dict)
    """By link: how long ago the first of them was due."""


_INBOX = f"""
select (select count(*) from (select from inbox where outcome is null and error is null limit {BOUND}) x),
       coalesce((select extract(epoch from clock_timestamp() - received_at) from inbox
                 where outcome is null and error is null order by id limit 1), 0)::float,
       (select count(*) from (select from inbox where outcome is null and error is not null limit {BOUND}) x),
       (select count(*) from (select from segment where joined_at is null limit {BOUND}) x),
       coalesce((select (value->>'open')::bool from switch where name = 'service'), true),
       coalesce((select (value->>'until')::timestamptz > now() from switch where name = 'guess_alarm'), false),
       (select count(*) from (select from mail where state in ('ready', 'claimed') limit {BOUND}) x),
       coalesce((select max(overdue) from (
           (select extract(epoch from clock_timestamp() - due_at) as overdue from mail
            where state in ('ready', 'claimed') and urgent order by due_at limit 1)
           union all
           (select extract(epoch from clock_timestamp() - due_at) from mail
            where state in ('ready', 'claimed') and not urgent order by due_at limit 1)) x where overdue > 0), 0)::float
"""  # noqa: S608

# Link after link by the index, so that a full one does not hide the others.
_OUTBOX = f"""
with recursive links as (
    (select link from outbox where state in ('ready', 'claimed') order by link limit 1)
    union all
    select (select o.link from outbox o where o.state in ('ready', 'claimed') and o.link > links.link
            order by o.link limit 1)
    from links where links.link is not null
)
select link,
       (select count(*) from (select from outbox o where o.link = links.link and o.state in ('ready', 'claimed')
                              limit {BOUND}) x),
       (select greatest(extract(epoch from clock_timestamp() - o.due_at), 0) from outbox o
        where o.link = links.link and o.state in ('ready', 'claimed') order by o.due_at limit 1)::float
from links where link is not null
"""  # noqa: S608


def look(conn: psycopg.Connection) -> Depths:
    """What waits now. Raises psycopg.Error."""
    with conn.transaction():
        conn.execute("set local statement_timeout = '1s'")
        row = conn.execute(_INBOX).fetchone()
        assert row is not None
        depths = Depths(*row)
        for link, count, overdue in conn.execute(_OUTBOX).fetchall():
            depths.outbox[link], depths.outbox_overdue[link] = count, overdue
    return depths
