"""An owner says "this was not me" of a re-issue, and everything ends at once; the counter lifts the hold.

By a signed-in session, or by the link in a notice that went to an address older than a week: whoever added an address
yesterday may be the one who is reported. The link's token (domain/capability.py) is good for reporting alone, and a
page acts on nothing but a POST, so that what opens links in mails (scanners, previews) does nothing.

What ends: the open case, the password (chosen or taken over), all sessions and remembered devices, the login itself.
Addresses younger than a week are removed, and what `also` ends (passkeys: their table is not ours). But whoever got
hold of the phone may be the one who reports. So every address is told first; and within a day of a re-issue
(cooling.py) nothing is removed but what came after it. What is left opens nothing, for the login is off, and goes when
the counter lifts the hold: then it is the owner who is there, and begins anew. What stays is the registered phone and
the agency's address. Until the counter has seen the person nothing is issued (policy.Outcome.HELD).
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
from django.contrib.auth.hashers import make_password
from django.db import transaction
from django.db.models.functions import Now

from caplai.domain import capability, msisdn
from caplai.service import notices
from caplai.service.addresses import YOUNG
from caplai.service.cooling import COOLING, cooling_until
from caplai.service.credentials import lock, login_of
from caplai.service.notices import LABEL
from caplai.store.models import (
    Account,
    Address,
    Case,
    Device,
    Event,
    Hold,
    Login,
    Mail,
    TakenOverPassword,
    new_stamp,
)
from caplai.watch import metrics

log = logging.getLogger(__name__)

LINK_LIVES = timedelta(days=14)
REPORTED, LIFTED = "reported", "hold_lifted"
"""Kinds of events."""
BY_MAIL, BY_SESSION = "mail", "session"
for _by in (BY_MAIL, BY_SESSION):
    metrics.reports.labels(_by)


@dataclass(frozen=True, slots=True, repr=False)
class Link:
    """What the token of a link stands for."""

    account: str
    kind: str
    """Of the notice that it came in."""
    case_id: UUID | None
    at: datetime
    """When what it told of happened."""


@dataclass(frozen=True, slots=True, repr=False)
class Held:
    """An account that waits for the counter, as operators see it."""

    since: datetime
    by: str
    code: str
    """Its last four digits only."""
    phone: str
    """Masked."""


def link_of(token: str, keys: Iterable[bytes]) -> Link | None:
    """What this token is good for now; None if it is none of ours, too old, or from before a hold that was lifted.

    Changes nothing. `keys`: those that may have made it.
    """
    name = capability.name_of(keys, LABEL, token)
    mail = name and Mail.objects.filter(name=name, created_at__gt=Now() - LINK_LIVES).first()
    if not mail or Hold.objects.filter(account=mail.account, lifted_at__gt=mail.created_at).exists():
        return None
    return Link(mail.account, mail.kind, mail.about, mail.created_at)


def is_held(code: str) -> bool:
    """Whether the account waits for the counter."""
    return Hold.objects.filter(account=code, lifted_at__isnull=True).exists()


Also = Callable[[Login, datetime | None], object]
"""Ends what is not ours to end: of this login, what was made after this moment; None: all of it."""


def _nothing(login: Login, after: datetime | None) -> None:
    pass


def report(code: str, by: str, case_id: UUID | None = None, also: Also = _nothing) -> bool:
    """End all that opens the account, and hold it, in one transaction; False if it was held already.

    `by`: BY_MAIL or BY_SESSION. `case_id`: what was reported, if it is known.
    """
    with transaction.atomic():
        lock(code)
        if is_held(code) or not Account.objects.filter(code=code).exists():
            return False
        opened = Case.objects.filter(account=code, ended_at__isnull=True)
        case_id = case_id or opened.values_list("id", flat=True).first()
        opened.update(ended_at=Now(), ended_as=Case.End.REPORTED)
        TakenOverPassword.objects.filter(code=code).delete()
        # Made if there was none: while there is one, an import brings no old password back.
        login = Login.objects.select_for_update().get(pk=login_of(code).pk)
        was_on = login.is_active
        login.password, login.stamp, login.is_active = make_password(None), new_stamp(), False
        login.save(update_fields=["password", "stamp", "is_active"])
        Device.objects.filter(login=login).delete()
        notices.tell(code, "reported")
        hold = Hold.objects.create(account=code, by=by, case_id=case_id, switched_off=was_on)
        until = cooling_until(code)
        used = until and until - COOLING
        hold.refresh_from_db(fields=["since"])
        _remove_since(code, used or hold.since - YOUNG)
        also(login, used)
        Event.objects.create(kind=REPORTED, login_id=login.pk, case_id=case_id, data={"by": by})
    metrics.reports.labels(by).inc()
    log.warning(
        "report: somebody said that it was not them; their account is held (caplai accounts hold list)"
    )
    return True


def _remove_since(code: str, at: datetime) -> None:
    """Remove the addresses that were confirmed after that, and those that are not confirmed."""
    there = Address.objects.filter(account=code, removed_at__isnull=True)
    there.exclude(confirmed_at__lte=at).update(removed_at=Now())


def lift(code: str, by: str, also: Also = _nothing) -> bool:
    """Let an account be re-issued again, for a person whom the counter has seen; False if it was not held.

    `by`: who lifts it, for the record. What the report left goes now: passkeys, and addresses that were younger than a
    week when it came. Neither they nor the old password come back: the person texts for a new one.
    """
    with transaction.atomic():
        lock(code)
        hold = Hold.objects.filter(account=code, lifted_at__isnull=True).first()
        if hold is None:
            return False
        Hold.objects.filter(pk=hold.pk).update(lifted_at=Now(), lifted_by=by)
        logins = Login.objects.filter(account=code)
        notices.tell(code, "hold_lifted")
        _remove_since(code, hold.since - YOUNG)
        for login in logins:
            also(login, None)
        if hold.switched_off:
            logins.update(is_active=True)
        Event.objects.create(
            kind=LIFTED,
            login_id=logins.values_list("pk", flat=True).first(),
            case_id=hold.case_id,
            data={"by": by},
        )
    return True


def held(conn: psycopg.Connection) -> list[Held]:
    """All accounts that wait for the counter, the longest first."""
    rows = conn.execute(
        "select h.since, h.by, h.account, a.phone from hold h left join account a on a.code = h.account"
        " where h.lifted_at is null order by h.since"
    ).fetchall()
    return [
        Held(since, by, f"…{code[-4:]}", msisdn.mask(phone) if phone else "")
        for since, by, code, phone in rows
    ]
