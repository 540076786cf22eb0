"""A passkey more, a passkey less, of somebody who is signed in. (The one that uses a case: using.py.)

The rows are another app's table, so whoever calls says what there is and how it is written; what is decided here is
decided under the account's lock.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum

from django.db import transaction

from caplai.service import notices
from caplai.service.cooling import cooling_until, is_kept
from caplai.service.credentials import hold_active, lock
from caplai.store.models import Event, Login

MOST = 10
"""Passkeys of a login."""
ADDED, REMOVED = "passkey_added", "passkey_removed"
"""The kinds of the events."""

Made = Callable[[], Mapping[int, datetime]]
"""The login's passkeys: id → when it was made, by the database's clock."""


class Adding(Enum):
    """What became of a new passkey."""

    ADDED = "added"
    TOO_MANY = "too_many"
    ENDED = "ended"
    """The session has ended meanwhile: the login was switched off, or a case was used."""


class Removing(Enum):
    """What became of the wish to remove a passkey."""

    REMOVED = "removed"
    UNKNOWN = "unknown"
    """There is no such passkey of this login (any more)."""
    KEPT = "kept"
    """It was there before the latest re-issue, less than 24 hours ago (cooling.py)."""
    LAST = "last"
    """Without it there would be no way in: no password, no other passkey."""
    ENDED = "ended"
    """As of Adding."""


def add(login: Login, made: Made, store: Callable[[], object]) -> Adding:
    """Add a passkey, which `store` writes."""
    with transaction.atomic():
        lock(login.username)
        if not hold_active(login, stamp=login.stamp):
            return Adding.ENDED
        if len(made()) >= MOST:
            return Adding.TOO_MANY
        store()
        _tell(login, ADDED)
    return Adding.ADDED


def remove(login: Login, passkey: int, made: Made, delete: Callable[[], object]) -> Removing:
    """Remove the passkey with this id, which `delete` does."""
    with transaction.atomic():
        lock(login.username)
        if not hold_active(login, stamp=login.stamp):
            return Removing.ENDED
        there = made()
        if passkey not in there:
            return Removing.UNKNOWN
        if is_kept(there[passkey], cooling_until(login.username)):
            return Removing.KEPT
        if len(there) == 1 and not Login.objects.get(pk=login.pk).has_usable_password():
            return Removing.LAST
        delete()
        _tell(login, REMOVED)
    return Removing.REMOVED


def _tell(login: Login, kind: str) -> None:
    Event.objects.create(kind=kind, login_id=login.pk)
    notices.tell(login.username, kind)
