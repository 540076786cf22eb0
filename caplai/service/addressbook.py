"""The e-mail addresses of an account: what its owner adds, confirms and removes, each in one transaction.

The address in the agency's registry (`account.email`) counts as confirmed and is the agency's to change. One that the
owner adds is confirmed by a code of six digits that is mailed to it; until then it is good for nothing. For 24 hours
after a re-issue was used (cooling.py) those that were there before cannot be removed, and whatever is added is told to
all of them, so that who only has the phone cannot shut the owner out unheard.
"""

from collections.abc import Collection
from datetime import timedelta
from enum import Enum

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from caplai.domain import capability
from caplai.domain.letters import Code, Part
from caplai.service import mail, notices
from caplai.service.addresses import confirmed, same
from caplai.service.cooling import cooling_until, is_kept
from caplai.service.credentials import hold_active, lock
from caplai.service.mail import Site
from caplai.store.mails import Due
from caplai.store.models import Address, Event, Login

LABEL = "address"
"""What the code is good for (domain/capability.py)."""
CODE_LIVES = timedelta(hours=24)
TRIES = 5
"""Codes that may be typed for one address: five in a million."""
MOST = 5
"""Confirmed addresses of an account, beside the agency's."""
ADDED_A_DAY = 5
"""Addresses to which an account may have a code sent within 24 hours: nobody's mailbox is to be filled by us."""
CODES = 3
"""How often the code of one address is sent."""
ADDED, REMOVED = "address_confirmed", "address_removed"
"""Kinds of events. They hold the address's id, never the address."""


class Adding(Enum):
    """What became of the wish to add an address."""

    SENT = "sent"
    """Its code is on the way; `confirm` takes it."""
    ALREADY = "already"
    """It is confirmed."""
    TOO_MANY = "too_many"
    """There are as many as there may be: remove one first."""
    TOO_OFTEN = "too_often"
    """Too many codes were sent in the last 24 hours."""
    OFF = "off"
    """No mail is sent by this site."""
    ENDED = "ended"
    """The session has ended meanwhile: a case was used, or the account was reported."""


class Confirming(Enum):
    """What became of a typed code."""

    CONFIRMED = "confirmed"
    WRONG = "wrong"
    ENDED = "ended"
    """There is nothing to confirm: its time or its tries are over, it was done elsewhere, or the session has ended."""


class Removing(Enum):
    """What became of the wish to remove an address."""

    REMOVED = "removed"
    UNKNOWN = "unknown"
    """The account has no such address, or it is the agency's."""
    KEPT = "kept"
    """It was there before a re-issue that was used within the last 24 hours."""
    ENDED = "ended"
    """As of Adding."""


def pending(code: str) -> Address | None:
    """The address whose code may be typed now."""
    waiting = Address.objects.filter(
        account=code, confirmed_at__isnull=True, removed_at__isnull=True, tries__lt=TRIES
    )
    return waiting.filter(added_at__gt=Now() - CODE_LIVES).first()


def add(login: Login, email: str) -> Adding:
    """Note an address (a valid one, as typed) as unconfirmed, in the place of another unconfirmed one, and mail it its
    code. The same once more sends the same code again.
    """
    if not mail.is_on():
        return Adding.OFF
    code = login.account_id
    with transaction.atomic():
        lock(code)
        if not hold_active(login, stamp=login.stamp):
            return Adding.ENDED
        known = confirmed(code)
        if any(same(email, other.email) for other in known):
            return Adding.ALREADY
        if sum(other.id is not None for other in known) >= MOST:
            return Adding.TOO_MANY
        again = pending(code)
        if again is not None and same(again.email, email):
            if again.codes >= CODES:
                return Adding.TOO_OFTEN
            Address.objects.filter(pk=again.pk).update(codes=F("codes") + 1)
            _send_code(again)
            return Adding.SENT
        if (
            Address.objects.filter(account=code, added_at__gt=Now() - timedelta(days=1)).count()
            >= ADDED_A_DAY
        ):
            return Adding.TOO_OFTEN
        Address.objects.filter(account=code, confirmed_at__isnull=True, removed_at__isnull=True).update(
            removed_at=Now()
        )
        _send_code(Address.objects.create(account=code, email=email))
    return Adding.SENT


def confirm(login: Login, typed: str, keys: Collection[bytes]) -> Confirming:
    """Confirm the address that waits for it by the code that was mailed to it. `keys`: those that may have made it.

    A try is counted before it is compared.
    """
    code = login.account_id
    with transaction.atomic():
        lock(code)
        address = pending(code) if hold_active(login, stamp=login.stamp) else None
        if address is None:
            return Confirming.ENDED
        Address.objects.filter(pk=address.pk).update(tries=F("tries") + 1)
        if not capability.code_matches(keys, LABEL, address.name, typed):
            return Confirming.WRONG if address.tries + 1 < TRIES else Confirming.ENDED
        Address.objects.filter(pk=address.pk).update(confirmed_at=Now())
        Event.objects.create(kind=ADDED, login_id=login.pk, data={"address": address.pk})
        notices.tell(code, "address_added", except_=[address.pk])
    return Confirming.CONFIRMED


def remove(login: Login, address_id: int) -> Removing:
    """Remove an address of the account. All of them are told, this one too."""
    code = login.account_id
    with transaction.atomic():
        lock(code)
        if not hold_active(login, stamp=login.stamp):
            return Removing.ENDED
        address = Address.objects.filter(
            account=code, pk=address_id, confirmed_at__isnull=False, removed_at__isnull=True
        ).first()
        if address is None:
            return Removing.UNKNOWN
        if is_kept(address.confirmed_at, cooling_until(code)):
            return Removing.KEPT
        notices.tell(code, "address_removed")
        Address.objects.filter(pk=address.pk).update(removed_at=Now())
        Event.objects.create(kind=REMOVED, login_id=login.pk, data={"address": address.pk})
    return Removing.REMOVED


def _send_code(address: Address) -> None:
    mail.post("address_code", address.account, address.pk, lasting=CODE_LIVES, urgent=True)


@mail.kind("address_code")
def _write_code(due: Due, site: Site) -> Part | None:
    assert site.conn is not None
    row = site.conn.execute(
        "select name from address where id = %s and confirmed_at is null and removed_at is null",
        [due.address_id],
    ).fetchone()
    if row is None:
        return None
    ring = site.keys.ring("pepper")
    return Part(
        _("Your one-time code"),
        [
            _(
                "Somebody who is signed in to an account (%(site)s) wants to use this email address for it. If it was"
                " you, type this code on the page:"
            )
            % {"site": mail.site_name()},
            Code(capability.code(ring.keys[ring.active], LABEL, row[0])),
            _(
                "It can be used for 24 hours. Give it to nobody, not even to somebody who says they are an official."
            ),
            _("If it was not you, there is nothing to do: without the code the address is not used."),
        ],
    )
