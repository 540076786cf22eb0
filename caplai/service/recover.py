"""After the database has come back from a backup: nothing that lived in the old time lives on.

A restored case would let a password sign in that was used or reported since, a restored session or device whoever
had been thrown out since, and a restored message would be answered days late. So in one statement:

- open cases end as `restored` (or as `expired`, if they had);
- sign-ins and remembered devices are gone, and the codes and tokens of clients;
- messages without an outcome get the outcome `restored`: they were acknowledged, so the carrier will not send
  them again, and their senders have long texted once more;
- replies that were not settled are `expired`: their passwords have ended, and whatever else they said is old;
- requests of people who forgot a password end as `restored`, also those with too many wrong tries, whose links were
  still good; mails that were not settled fail as `restored`, and re-issues from before are told to nobody;
- parts of long messages are gone;
- every acknowledgement counts as arrived: a text that comes now is a new message, and no redelivery of one that
  will not be answered any more.

Passwords that people chose, guesses and limits stand as they did at the time of the backup.
"""

from dataclasses import dataclass

import psycopg

# Only what the first migration made, for a backup may be older than this version of caplai; and no parameters, for
# it runs as the end of a script, too.
END = """
do $$ begin
    if to_regclass('allauth_idp_oidc_token') is not null then delete from allauth_idp_oidc_token; end if;
    if to_regclass('recovery') is not null then
        update recovery set ended_at = now(), ended_as = 'restored'
        where expires_at > now() and (ended_at is null or ended_as = 'tried_out');
    end if;
    if to_regclass('mail') is not null then
        update mail set state = 'failed', error = 'restored', settled_at = now(), claimed_by = null
        where state in ('ready', 'claimed');
    end if;
    if to_regclass('retention') is not null then
        update retention set mark = jsonb_build_object('upto', now()) where name = 'notices';
    end if;
end $$;
with cases as (
    update reissue_case set ended_at = least(expires_at, now()),
        ended_as = case when expires_at <= now() then 'expired' else 'restored' end
    where ended_at is null returning ended_as
), messages as (
    update inbox set outcome = 'restored', decided_at = now() where outcome is null returning 1
), replies as (
    update outbox set state = 'expired', settled_at = now(), claimed_by = null
    where state in ('ready', 'claimed') returning 1
), parts as (
    delete from segment returning 1
), sessions as (
    delete from django_session returning 1
), devices as (
    delete from device returning 1
), binds as (
    update link_session set ended_at = coalesce(ended_at, now()), confirmed_at = now()
)
insert into event (at, kind, data) select now(), 'restored', jsonb_build_object(
    'cases', (select count(*) from cases where ended_as = 'restored'), 'messages', (select count(*) from messages),
    'replies', (select count(*) from replies), 'parts', (select count(*) from parts),
    'sessions', (select count(*) from sessions), 'devices', (select count(*) from devices))
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How many of each were ended; `cases`: of those that had not expired."""

    cases: int
    messages: int
    replies: int
    parts: int
    sessions: int
    devices: int


def end_all(conn: psycopg.Connection) -> Ended:
    """End what lived in the old time. In the caller's transaction; nothing may be served before it commits."""
    conn.execute(END)
    return last_ended(conn)


def last_ended(conn: psycopg.Connection) -> Ended:
    """What the last restore ended, as its event has it."""
    [[data]] = conn.execute(
        "select data from event where kind = 'restored' order by id desc limit 1"
    ).fetchall()
    return Ended(**data)
