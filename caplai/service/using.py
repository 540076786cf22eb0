"""How a case is used (service.md, "Used is one transaction"): a person stores what they sign in with from now on.

`choose` stores a password of one's own, `take_passkey` a passkey. With it ends what came before, in the same
transaction: the case and its issued password, the old password, the other sessions (by the stamp), the remembered
devices, the guesses. Passkeys that were there stay: a text that somebody else read must not take them away.
"""

from collections.abc import Callable
from datetime import datetime
from enum import Enum
from uuid import UUID

from django.contrib.auth.hashers import make_password
from django.db import connection, transaction
from django.db.models.functions import Now

from caplai.domain.issuing import Inputs, matches
from caplai.service import notices
from caplai.service.credentials import Rules, has_issuing, hold_active, lock
from caplai.store.models import Account, Case, Device, Event, Guess, Login, TakenOverPassword, new_stamp

PASSWORD_CHOSEN, PASSKEY_CHOSEN = "password_chosen", "passkey_chosen"
"""The kinds of the event that says by what a case was used."""


class Choice(Enum):
    """What became of the attempt to use a case."""

    CHOSEN = "chosen"
    SAME_AS_ISSUED = "same_as_issued"
    ENDED = "ended"
    """The case ended meanwhile (used elsewhere, expired, …), or the login was switched off."""
    TRY_AGAIN = "try_again"
    """This host lacks the case's key."""


def is_choosable(login: Login, case_id: UUID) -> bool:
    """Whether this case's password still lets its owner, as just read from the store, choose what comes after it."""
    return (
        login.is_active
        and Case.objects.filter(
            account=login.account_id, id=case_id, ended_at__isnull=True, expires_at__gt=Now()
        ).exists()
    )


def choose(login: Login, case_id: UUID, password: str, *, attempt: str, rules: Rules) -> Choice:
    """Use the case by the password that the person chose.

    `login` is changed in place, so that a session may be opened for it. `attempt` names one pending sign-in: the same
    form sent twice is answered CHOSEN twice and stored once.
    """
    hashed = make_password(password)

    def refused(case: Case) -> Choice | None:
        if not has_issuing(case.key, rules):
            return Choice.TRY_AGAIN
        inputs = Inputs(case.version, case.id, case.account, case.length, case.alphabet)
        return Choice.SAME_AS_ISSUED if matches(rules.issuing.keys[case.key], inputs, password) else None

    return _use(login, case_id, PASSWORD_CHOSEN, hashed, attempt, refused)


def take_passkey(login: Login, case_id: UUID, store: Callable[[], object], *, attempt: str) -> Choice:
    """Use the case by a passkey, which `store` writes (its table is not ours); the login has no password after it.

    `login` and `attempt` as of `choose`.
    """
    return _use(login, case_id, PASSKEY_CHOSEN, make_password(None), attempt, store=store)


def _use(
    login: Login,
    case_id: UUID,
    kind: str,
    hashed: str,
    attempt: str,
    refused: Callable[[Case], Choice | None] = lambda case: None,
    store: Callable[[], object] = lambda: None,
) -> Choice:
    code = login.account_id
    with transaction.atomic():
        lock(code)
        case = Case.objects.filter(account=code, id=case_id).first()
        approved = Account.objects.filter(code=code, state=Account.State.APPROVED)
        if case is None or not approved.exists() or not hold_active(login):
            return Choice.ENDED
        if case.ended_as == Case.End.USED:
            return _again(login, case_id, kind, attempt)
        if case.ended_at is not None or case.expires_at <= _now():
            return Choice.ENDED
        if refusal := refused(case):
            return refusal
        login.password, login.stamp = hashed, new_stamp()  # type: ignore[assignment]
        login.save(update_fields=["password", "stamp"])
        TakenOverPassword.objects.filter(code=code).delete()
        Case.objects.filter(account=code, id=case_id).update(ended_at=Now(), ended_as=Case.End.USED)
        Device.objects.filter(login=login).delete()
        wrong = Guess.objects.filter(account=code, cleared=False).update(cleared=True)
        data = {"attempt": attempt, "wrong": wrong}
        Event.objects.create(kind=kind, login_id=login.pk, case_id=case_id, data=data)
        notices.tell(code, kind)
        store()
    return Choice.CHOSEN


def _again(login: Login, case_id: UUID, kind: str, attempt: str) -> Choice:
    mine = Event.objects.filter(login_id=login.pk, kind=kind, case_id=case_id, data__attempt=attempt)
    if not mine.exists():
        return Choice.ENDED
    login.refresh_from_db(fields=["password", "stamp"])
    return Choice.CHOSEN


def _now() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("select clock_timestamp()")
        return cursor.fetchone()[0]
