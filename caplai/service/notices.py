"""What happened to an account is told to its confirmed addresses: that it happened, when, and what to do if it was not
its owner. A notice never holds a password, a code or a phone.

What the owner does is told in the transaction that does it (`tell`). Re-issues are not: thousands are decided in a
second, for people of whom few have an address, so the flow knows nothing of notices. `tell_of_reissues` goes through
the cases that were opened since it last looked, by the index over their times, set-based, from another process.
"""

import time
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

import psycopg
from django.utils import timezone
from django.utils.translation import gettext as _

from caplai.domain import capability
from caplai.domain.letters import Block, Link, Part
from caplai.service import mail
from caplai.service.addresses import YOUNG, confirmed
from caplai.service.keys import OPENING
from caplai.service.mail import Site
from caplai.store import db
from caplai.store.mails import Due

LABEL = "report"
"""What the token of a notice's link is good for (domain/capability.py)."""

WHAT: dict[str, Callable[[], tuple[str, str]]] = {
    "reported": lambda: (
        _("The account is locked"),
        _(
            "somebody reported that what happened was not done by the owner. The account is locked; nobody can sign in."
        ),
    ),
    "hold_lifted": lambda: (
        _("The account is open again"),
        _("the office of the agency has unlocked it. Text for a new password from the registered phone."),
    ),
    "reissued": lambda: (
        _("A new password was issued"),
        _("somebody asked for a new password, and one was issued."),
    ),
    "password_chosen": lambda: (
        _("A new password was set"),
        _(
            "a new password was set after the old one was forgotten; the old one no longer works, and all other"
            " devices were signed out."
        ),
    ),
    "passkey_chosen": lambda: (
        _("A fingerprint or face was chosen"),
        _(
            "fingerprint or face was chosen after the password was forgotten; the old password no longer works,"
            " and all other devices were signed out."
        ),
    ),
    "password_changed": lambda: (_("The password was changed"), _("the password was changed.")),
    "passkey_added": lambda: (
        _("A fingerprint or face was added"),
        _("a sign-in by fingerprint or face was added."),
    ),
    "passkey_removed": lambda: (
        _("A fingerprint or face was removed"),
        _("a sign-in by fingerprint or face was removed."),
    ),
    "address_added": lambda: (
        _("An email address was added"),
        _("another email address was added and confirmed."),
    ),
    "address_removed": lambda: (_("An email address was removed"), _("an email address was removed.")),
}
"""Kind → what it is called, and the end of the sentence that tells it."""


def tell(code: str, kind: str, except_: Collection[int | None] = ()) -> int:
    """Queue a notice of this kind (WHAT) to each confirmed address of the account; returns to how many.

    Within the transaction of what it tells of. `except_`: ids of addresses that need not hear it; None is the agency's.
    """
    assert kind in WHAT, f"no notice is called {kind}"
    told = 0
    for address in confirmed(code) if mail.is_on() else ():
        if address.id not in except_:
            mail.post(kind, code, address.id)
            told += 1
    return told


def _write(due: Due, site: Site) -> Part:
    title, says = WHAT[due.kind]()
    blocks: list[Block] = [
        _("At %(time)s, for the account that ends in %(end)s (%(site)s): %(says)s")
        % {
            "time": timezone.localtime(_happened_at(due, site)).strftime("%H:%M %d/%m/%Y"),
            "end": due.account[-4:],
            "site": mail.site_name(),
            "says": says,
        }
    ]
    return Part(title, [*blocks, *(_ENDINGS.get(due.kind) or _not_me)(due, site)])


def _happened_at(due: Due, site: Site) -> datetime:
    if due.kind != "reissued" or site.conn is None:
        return due.created_at
    row = site.conn.execute(
        "select opened_at from reissue_case where account = %s and id = %s", [due.account, due.about]
    ).fetchone()
    return row[0] if row else due.created_at


def _not_me(due: Due, site: Site) -> list[Block]:
    blocks: list[Block] = [_("If it was you, there is nothing to do.")]
    if due.since is None or due.created_at - due.since < YOUNG:
        return [
            *blocks,
            _("If it was not you, go to the nearest office of the agency with your identity card."),
        ]
    ring = site.keys.ring("pepper")
    token = capability.token(ring.keys[ring.active], LABEL, due.name)
    return [
        *blocks,
        _(
            "If it was not you, say so on this page. Then nothing opens the account any more, and it stays"
            " locked until you have been at an office of the agency."
        ),
        Link(_("This was not me"), f"{site.url}/report/{token}/"),
    ]


def _to_the_office(due: Due, site: Site) -> list[Block]:
    return [_("To open it again, go to the nearest office of the agency with your identity card.")]


_ENDINGS: dict[str, Callable[[Due, Site], list[Block]]] = {"reported": _to_the_office}
"""What a notice says below what happened, where that is not the way to say "this was not me"."""

for _kind in WHAT:
    mail.kind(_kind)(_write)


# --- re-issues -------------------------------------------------------------------------------------

_MARK = "notices"
"""The row of `retention` that says how far the cases have been gone through."""
_SLICE = timedelta(seconds=30)
"""Of cases' times, in one transaction: 142,500 cases in a wave of 4,750 a second. One that took too long is halved, and
the mark says to what; each that did not is twice the one before."""
_PATIENCE = "2s"
"""Of the server with one slice: who tells also sends what somebody waits for."""
_ENOUGH = 0.5
"""Seconds after which no other slice is begun."""
_OLDEST = timedelta(hours=24)
"""What happened longer ago (while no mail was sent) is told to nobody any more."""

# Who opens cases holds the lock OPENING from before it takes their time until they are committed. So up to the moment
# when the first of those began all cases are there; where another role hides when it began, ten minutes are enough.
_BEGIN = f"""
insert into retention (name, mark, rows) values ('{_MARK}', jsonb_build_object('upto', now()), 0) on conflict do nothing
"""  # noqa: S608
_BOUNDS = f"""
select greatest((mark->>'upto')::timestamptz, now() - %(oldest)s), (
    select coalesce(min(coalesce(a.xact_start, now() - interval '10 minutes')), now())
    from pg_locks l left join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'advisory' and l.granted and l.objsubid = 1
      and (l.classid::bigint << 32 | l.objid::bigint) = %(opening)s
      and l.database = (select oid from pg_database where datname = current_database())),
    least(%(slice)s, make_interval(secs => (mark->>'slice')::float))
from retention where name = '{_MARK}' for update skip locked
"""  # noqa: S608
_TELL = f"""
with told as (
    insert into mail (name, kind, account, address_id, about, until)
    select gen_random_uuid(), 'reissued', c.account, d.id, c.id, now() + %(lasting)s
    from reissue_case c, lateral (
        select null::bigint as id from account a where a.code = c.account and a.email <> ''
        union all
        select a.id from address a
        where a.account = c.account and a.confirmed_at <= c.opened_at and a.removed_at is null
    ) d where c.opened_at > %(after)s and c.opened_at <= %(upto)s and c.account <> ''
    returning 1
)
update retention set rows = rows + (select count(*) from told),
    mark = jsonb_build_object('upto', %(upto)s::timestamptz, 'slice', %(next)s::float)
where name = '{_MARK}' returning (select count(*) from told)
"""  # noqa: S608
_SHORTER = f"""
update retention set mark = mark || jsonb_build_object('slice',
    least(extract(epoch from %(slice)s::interval), (mark->>'slice')::float) / 2)
where name = '{_MARK}'
"""  # noqa: S608


def tell_of_reissues(conn: psycopg.Connection) -> int:
    """Queue a notice of each case opened since the last call, to every confirmed address; returns how many.

    From the first call on. Needs a connection in autocommit. Any number of processes may call it: one does the work,
    and a crash in the middle leaves it to the next, who tells each case once. It stops after a moment, whatever is left
    to tell. Raises QueryCanceled where a slice took too long: the next call tries half of it.
    """
    told, more, end = 0, True, time.monotonic() + _ENOUGH
    while more and time.monotonic() < end:
        try:
            queued, more = _tell_slice(conn)
        except psycopg.errors.QueryCanceled:
            conn.execute(_SHORTER, {"slice": _SLICE})
            raise
        told += queued
    return told


def _tell_slice(conn: psycopg.Connection) -> tuple[int, bool]:
    """How many notices it queued, and whether there is more for us to tell."""
    with conn.transaction():
        conn.execute(f"set local statement_timeout = '{_PATIENCE}'")
        conn.execute(_BEGIN)
        values = {"oldest": _OLDEST, "opening": OPENING, "slice": _SLICE}
        found = conn.execute(_BOUNDS, values).fetchone()
        if found is None:  # another one is at it
            return 0, False
        after, bound, slice_ = found
        if bound <= after:
            return 0, False
        upto = min(bound, after + slice_)
        following = min(2 * slice_, _SLICE).total_seconds()
        values = {"after": after, "upto": upto, "lasting": mail.LASTING, "next": following}
        return int(db.row(conn.execute(_TELL, values))[0]), upto < bound
