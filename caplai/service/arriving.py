"""How a sign-in is closed, by password or passkey, and whether the device is remembered.

What every sign-in needs is one statement that the server has prepared, in the transaction that also keeps the session.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from caplai.service import locks
from caplai.service.credentials import hash_of, keys_of
from caplai.store import db
from caplai.store.models import Login

SIGNED_IN = "signed_in"
"""The kind of the event of a completed sign-in."""
_DEVICES = 10
"""Known devices of a login: each has guesses of its own, so there must not be any number of them."""

_CLOSE = """
with held as (
  update login set last_login = clock_timestamp() where id = %(login)s and is_active and stamp = %(stamp)s
  returning id
), brought as (
  select exists (
    select from device where token_hash = %(brought)s and (%(remember)s or login_id <> %(login)s)) as known
), token as (
  select case when known then %(brought)s else %(new)s end as hash from brought
), cleared as (
  update guess g set cleared = true from held where g.account = %(account)s and not g.cleared returning 1
), remembered as (
  insert into device (login_id, token_hash, used_at, client)
  select held.id, token.hash, clock_timestamp(), %(client)s::text from held, token where %(remember)s
  on conflict (token_hash, login_id) do update set used_at = excluded.used_at, client = excluded.client
  returning id
), opened as (
  insert into sitting (row_key, login_id, device_id, stamp, client, created_at, seen_at)
  select %(row_key)s::text, held.id, remembered.id, %(stamp)s, %(client)s::text, clock_timestamp(), clock_timestamp()
  from held left join remembered on true where %(row_key)s::text is not null
  on conflict (row_key) do update set login_id = excluded.login_id, device_id = excluded.device_id,
    stamp = excluded.stamp, client = excluded.client, created_at = excluded.created_at, seen_at = excluded.seen_at
), told as (
  insert into event (at, kind, login_id, data)
  select clock_timestamp(), %(kind)s, held.id,
    jsonb_build_object('client', %(client)s::text, 'how', %(how)s::text, 'wrong', (select count(*) from cleared))
  from held
), forgotten as (
  delete from device where id in (
    select d.id from device d, held, token where d.login_id = held.id and d.token_hash <> token.hash
    order by d.used_at desc, d.id desc offset %(others)s)
  or not %(remember)s and token_hash = %(brought)s and login_id in (select id from held)
)
select exists (select from held), known from brought
"""


@dataclass(frozen=True, slots=True, repr=False)
class Arrival:
    """The session that a sign-in opens, as its owner sees it later (sittings.py, history.py)."""

    row_key: str | None = None
    """The key of the session's row; None: nothing to see or end."""
    client: str = ""
    """Program and system, coarsely."""
    how: str = ""
    """By what it was proved who is in: `password`, `passkey`."""


def signed_in(
    login: Login,
    device: str | None,
    also: Callable[[], object] = lambda: None,
    arrival: Arrival = Arrival(),
    remember: bool = True,
) -> str | None:
    """Close a completed sign-in: clear the account's guesses, remember the device or not, write down who came how.

    `device` is the token it brought, if any; returns the token to keep, of which only a hash is stored. A token
    that we gave out, to whichever login, is kept: a family's browser is known to each of its members.
    Without `remember` this login does not know the device any more, and "" is returned where nobody else does.
    `also` writes what belongs to the same transaction, by `db.execute`.
    None: the login was switched off, or another password chosen, since the password was checked; nobody is in.
    """
    new = secrets.token_urlsafe(32)
    with db.together() as cursor:
        if login.account_id is not None:
            locks.take(cursor, keys_of(login.account_id))
        values = {
            "login": login.pk,
            "stamp": login.stamp,
            "account": login.account_id,
            "brought": hash_of(device) if device is not None else None,
            "new": hash_of(new),
            "others": _DEVICES - 1,
            "row_key": arrival.row_key,
            "client": arrival.client,
            "how": arrival.how,
            "kind": SIGNED_IN,
            "remember": remember,
        }
        held, known = db.row(cursor.execute(_CLOSE, values))
        if not held:
            return None
        also()
    return device if known else new if remember else ""


_FORGET = """
with gone as (delete from device where login_id = %(login)s and token_hash = %(token)s)
select exists (select from device where login_id <> %(login)s and token_hash = %(token)s)
"""


def forget(login: Login, device: str) -> bool:
    """Remember the device with this token no longer, for this login; whether it is remembered for another."""
    return db.row(db.execute(_FORGET, {"login": login.pk, "token": hash_of(device)}))[0]
