"""Where a login is signed in, and the end of it: sessions of browsers and apps, and the devices that are remembered.

A sitting is written by the sign-in itself (credentials.py, `signed_in`). It is one as long as its session's row is
there and in time, and its stamp is the login's: so whatever changes the stamp ends it without knowing of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction

from caplai.service.credentials import lock
from caplai.store import db
from caplai.store.models import Event, Login, new_stamp

SIGNED_OUT, SIGNED_OUT_ELSEWHERE = "signed_out", "signed_out_elsewhere"
"""The kinds of the events: one sitting or device was ended from another; all but one were."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was done from, by numbers that stay the same: a session may go on under another key."""

    sitting: int | None
    """None: a session that has no sitting, such as one of an older version; or the device alone is meant."""
    device: int | None
    """The remembered device; None: none is, or the sitting alone is meant."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One place where somebody is signed in, or a device that is remembered and where nobody is."""

    name: str
    """What `end` knows it by."""
    client: str
    since: datetime
    seen: datetime
    """The last use as far as it is told, or the last sign-in with the device."""
    signed_in: bool
    here: bool
    """It is the session that asks."""
    remembered: bool


_LIVING = "sitting s join login l on l.id = s.login_id and l.stamp = s.stamp join django_session d on" + (
    " d.session_key = s.row_key and d.expire_date > clock_timestamp() where s.login_id = %(login)s"
)
_SEATS = f"""
select 's' || s.id, s.client, s.created_at, s.seen_at, true, s.row_key = %(here)s,
  exists (select from device v where v.id = s.device_id and v.login_id = s.login_id)
from {_LIVING}
union all
select 'd' || v.id, v.client, v.created_at, v.used_at, false, false, true
from device v where v.login_id = %(login)s
  and not exists (select from {_LIVING} and s.device_id = v.id)
order by 6 desc, 5 desc, 4 desc limit %(most)s
"""  # noqa: S608 - of constants
_MOST = 100
"""Seats that are shown; `end_others` ends them all."""

_END = """
with gone as (
  delete from sitting where id = %(id)s and login_id = %(login)s and row_key <> %(here)s
  returning id, row_key, device_id, client
), session as (
  delete from django_session d using gone where d.session_key = gone.row_key
), forgotten as (
  delete from device v using gone where v.id = gone.device_id and v.login_id = %(login)s
    -- A family's phone, or two browsers' sessions with one token: it is remembered for the session that asks.
    and not exists (select from sitting s where s.row_key = %(here)s and s.device_id = v.id)
)
select client, id, case when not exists (
  select from sitting s where s.row_key = %(here)s and s.device_id = gone.device_id
) then device_id end from gone
"""
_PLACE = """
select s.id, s.device_id from django_session d left join sitting s on s.row_key = d.session_key
where d.session_key = %s
"""
# Everybody takes a sitting's row before its session's, so that nobody waits in a circle. (A part of a WITH that nothing
# reads is carried out last.)
_ONLY = (
    "with gone as (delete from sitting where login_id = %(login)s and row_key <> %(here)s returning row_key)"
    " delete from django_session d using gone where d.session_key = gone.row_key",
    "delete from device where login_id = %(login)s and id not in (select device_id from sitting"
    " where login_id = %(login)s and row_key = %(here)s and device_id is not null)",
    "update sitting set stamp = %(stamp)s where login_id = %(login)s and row_key = %(here)s",
)
_KEEP = """
with kept as (update django_session set expire_date = %s where session_key = %s)
update sitting set seen_at = clock_timestamp() where row_key = %s
"""
_LEFT = """
with session as (delete from django_session where session_key = %s)
delete from sitting where row_key = %s
"""
_FORGET = "delete from device where id = %(id)s and login_id = %(login)s returning client, null::bigint, id"


def seats(login: Login, here: str) -> list[Seat]:
    """Where this login is signed in or remembered, the one that asks first, then the latest used.

    `here`: the key of the row of the session that asks.
    """
    values = {"login": login.pk, "here": here, "most": _MOST}
    return [Seat(*row) for row in db.execute(_SEATS, values).fetchall()]


def place(login: Login, here: str) -> Place | None:
    """Where the session with this key is; None if it has been ended. Nobody ends it until the transaction is over."""
    assert login.account_id is not None
    lock(login.account_id)
    found = db.execute(_PLACE, [here]).fetchone()
    return found and Place(*found)


def end(login: Login, name: str, here: str, also: Callable[[Place], object] = lambda place: None) -> bool:
    """Sign out of one seat at once, and forget its device. False: there is none (any more), or it is `here`.

    `also` ends what was granted from there and is not ours to end, in the same transaction.
    """
    kind, number = name[:1], name[1:]
    if kind not in ("s", "d") or not (number.isascii() and number.isdigit()) or len(number) > 18:
        return False
    values = {"id": int(number), "login": login.pk, "here": here}
    with transaction.atomic():
        if login.account_id is not None:
            lock(login.account_id)
        ended = db.execute(_END if kind == "s" else _FORGET, values).fetchone()
        if ended is not None:
            client, sitting, device = ended
            Event.objects.create(kind=SIGNED_OUT, login_id=login.pk, data={"client": client})
            also(Place(sitting, device))
    return ended is not None


def end_others(login: Login, here: str, also: Callable[[], object]) -> bool:
    """Sign out everywhere but `here`, known to us or not, and forget all devices but this one.

    The stamp changes, so `also` must bind the session that goes on to the new one: `login` is changed in place.
    False: the login was switched off, or its sessions ended, meanwhile.
    """
    with transaction.atomic():
        if login.account_id is not None:
            lock(login.account_id)
        if not _is_alive(here):
            return False
        stamp = new_stamp()
        if not Login.objects.filter(pk=login.pk, is_active=True, stamp=login.stamp).update(stamp=stamp):
            return False
        login.stamp = stamp  # type: ignore[assignment]
        only(login, here)
        Event.objects.create(kind=SIGNED_OUT_ELSEWHERE, login_id=login.pk)
        also()
    return True


def _is_alive(here: str) -> bool:
    """Whether the session that asks was not ended from elsewhere meanwhile: going on under a new key, it would be back.
    It is not ended either until our transaction is over.
    """
    db.execute("select from sitting where row_key = %s for update", [here])
    return db.execute("select from django_session where session_key = %s", [here]).fetchone() is not None


def only(login: Login, here: str) -> None:
    """Leave this sitting and its device alone, under the login's new stamp. Within the transaction that changed it."""
    values = {"login": login.pk, "here": here, "stamp": login.stamp}
    for statement in _ONLY:
        db.execute(statement, values)


def keep(row_key: str, until: datetime) -> None:
    """The session is in use: its row lives until then."""
    db.execute(_KEEP, [until, row_key, row_key])


def moved(row_key: str, to: str) -> None:
    """The session goes on under another key."""
    db.execute("update sitting set row_key = %s where row_key = %s", [to, row_key])


def left(row_key: str) -> None:
    """The session is over: its row goes, and the sitting with it."""
    db.execute(_LEFT, [row_key, row_key])
