"""How a password is changed by somebody who is signed in (NIST SP 800-63B-4, 3.1.1; ASVS 5.0, 6.2.2, 6.2.3, 7.4.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from django.contrib.auth.hashers import is_password_usable, make_password
from django.db import transaction

from caplai.service import credentials, notices, sittings
from caplai.service.credentials import Outcome, Rules, hold_active, lock
from caplai.store.models import Event, Login, TakenOverPassword, new_stamp

PASSWORD_CHANGED = "password_changed"  # noqa: S105 - the kind of the event, and of the notice


class Change(Enum):
    """What became of the wish to change the password."""

    CHANGED = "changed"
    WRONG = "wrong"
    """The current one is not right; it was counted as a guess."""
    ISSUED = "issued"
    """The current one is that of an open case, which leads to choosing one, and to nothing else."""
    THROTTLED = "throttled"
    """The current one was not looked at; `retry_at` says when it will be."""
    TRY_AGAIN = "try_again"
    """This host lacks a key; nothing was counted."""
    ENDED = "ended"
    """The login was switched off, or its password changed elsewhere, meanwhile: this session has ended."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The outcome, and with THROTTLED when to try again."""

    change: Change
    retry_at: datetime | None = None


_REFUSED = {
    Outcome.WRONG: Change.WRONG,
    Outcome.ISSUED: Change.ISSUED,
    Outcome.THROTTLED: Change.THROTTLED,
    Outcome.TRY_AGAIN: Change.TRY_AGAIN,
}


def change(
    login: Login,
    current: str | None,
    new: str,
    *,
    here: str,
    device: str | None,
    network: str,
    rules: Rules,
    also: Callable[[], object],
) -> Changed:
    """Replace the password that this login has, or give it one; end all its sessions but `here`, and other devices.

    `current` is checked as at the sign-in (`check`): booked as a guess of this device before the hash is computed, and
    taken back if it was right. None, for a login that has no password: then the caller has seen a fresh sign-in.
    `here`: the key of the row of the session that asks; `also` binds it to the new stamp, in the same transaction.
    `login` is changed in place. The confirmed addresses are told.
    """
    if current is None:
        if rules.lacks_keys:
            return Changed(Change.TRY_AGAIN)
        proved = login.password
        if is_password_usable(proved):
            return Changed(Change.ENDED)
    else:
        checked = credentials.check(login.username, current, device=device, network=network, rules=rules)
        if checked.outcome is not Outcome.SIGNED_IN:
            return Changed(_REFUSED[checked.outcome], checked.retry_at)
        assert checked.login is not None
        proved = checked.login.password
    hashed = make_password(new)
    code = login.account_id
    with transaction.atomic():
        if code is not None:
            lock(code)
        if not hold_active(login, password=proved, stamp=login.stamp):
            return Changed(Change.ENDED)
        login.password, login.stamp = hashed, new_stamp()  # type: ignore[assignment]
        login.save(update_fields=["password", "stamp"])
        sittings.only(login, here)
        Event.objects.create(kind=PASSWORD_CHANGED, login_id=login.pk)
        if code is not None:
            # One that came with an import would be good still, where nobody ever signed in by password.
            TakenOverPassword.objects.filter(code=code).delete()
            notices.tell(code, PASSWORD_CHANGED)
        also()
    return Changed(Change.CHANGED)
