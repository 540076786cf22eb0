"""The queue of e-mails: claim → settle, in SQL. What somebody waits for goes first.

A claimed row is its claimer's until its lease has run out; then it is due again, whoever claimed it. So a mail may be
sent twice after a crash, and is never lost.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
from psycopg.rows import args_row

MAIL_CHANNEL = "caplai_mail"


@dataclass(slots=True, repr=False)
class Due:
    """A claimed mail: its fields in the order of _CLAIM."""

    id: int
    name: UUID
    kind: str
    account: str
    address_id: int | None
    about: UUID | None
    language: str
    attempts: int
    created_at: datetime
    until: datetime
    late: bool
    """It is of no use any more."""
    email: str
    """Empty where there is no address any more."""
    since: datetime | None
    """Since when it is a confirmed one; 1970 for one that is as old as can be. None where there is none."""


_CLAIM = """
with due as (
    select id from mail where state in ('ready', 'claimed') and due_at <= now()
    order by urgent desc, due_at limit %(count)s for update skip locked
), claimed as (
    update mail m set state = 'claimed', claimed_by = %(by)s, attempts = attempts + 1, due_at = now() + %(lease)s
    from due where m.id = due.id returning m.*
)
select m.id, m.name, m.kind, m.account, m.address_id, m.about, m.language, m.attempts, m.created_at, m.until,
       m.until <= now(), coalesce(
           case when m.address_id is null then (select a.email from account a where a.code = m.account)
                else (select d.email from address d where d.id = m.address_id and d.account = m.account) end, ''),
       case when m.address_id is null
            then (select coalesce(a.email_since, 'epoch') from account a where a.code = m.account)
            else (select d.confirmed_at from address d where d.id = m.address_id) end
from claimed m order by m.urgent desc, m.id
"""


def claim(conn: psycopg.Connection, by: str, count: int, lease: timedelta) -> list[Due]:
    """Up to `count` mails that are due, `by`'s for `lease`; after it they are due again."""
    with conn.cursor(row_factory=args_row(Due)) as cursor:
        return cursor.execute(_CLAIM, {"by": by, "count": count, "lease": lease}).fetchall()


def settle(
    conn: psycopg.Connection,
    by: str,
    mail: int,
    state: str,
    *,
    error: str | None = None,
    again_in: float = 0.0,
    tried: bool = True,
) -> bool:
    """Write what became of a mail that `by` had claimed: `sent`, `failed`, or `ready` again in so many seconds.

    Not `tried`: the attempt is not counted. False: another one holds it by now, and it stays as it is.
    """
    return bool(
        conn.execute(
            "update mail set state = %(state)s, error = %(error)s, claimed_by = null,"
            " settled_at = case when %(state)s <> 'ready' then now() end,"
            " due_at = case when %(state)s = 'ready' then now() + %(wait)s * interval '1 second' else due_at end,"
            " attempts = attempts - case when %(tried)s then 0 else 1 end"
            " where id = %(id)s and claimed_by = %(by)s",
            {"state": state, "error": error, "wait": again_in, "tried": tried, "id": mail, "by": by},
        ).rowcount
    )
