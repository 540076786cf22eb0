"""Guesses and credentials: the verbs of the sign-in (service.md, "Guesses" and "The password that is issued").

`check` decides about a name and a password; arriving.py closes a sign-in, using.py ends a case. Each is one
transaction under the account's lock. The slow hash is always computed outside it: `check` first books the guess as a
failure and takes that back if the password was right, so that a crash or sixteen attempts at once never yield a guess
more than there is.

A password that came with an import (`taken_over_password`) is checked by the hash of the system that it came from, and
renewed to our own at its first success. Such a hash may cost ten times ours, so an account that still has one could be
told from the others by the time. Therefore, as long as there are any, every wrong password costs one of ours and one
of those, whoever's name was given: the account's own, or that of another account (a decoy), which is the same for a
name each time.

Beside its hash a sign-in is to cost next to nothing, so what every one of them needs is SQL that the server has
prepared, in five round trips; the ORM serves the rest.
"""

import hashlib
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import cache
from typing import Any
from uuid import UUID

import psycopg
from django.contrib.auth.hashers import (
    UNUSABLE_PASSWORD_PREFIX,
    identify_hasher,
    is_password_usable,
    make_password,
    verify_password,
)
from django.db import connection, transaction

from caplai.domain.grammar import CODE_LENGTH
from caplai.domain.issuing import LETTERS, VERSION, Inputs, Keyring, guessable, matches
from caplai.service import locks
from caplai.store import db
from caplai.store.models import Account, Guess, Hold, Login, TakenOverPassword

log = logging.getLogger(__name__)

ALARM = "guess_alarm"
"""The switch that makes new cases long (reissue.py), until its time."""
_ALARM_LASTS = timedelta(hours=1)
SITE_WINDOW = timedelta(hours=1)
"""The time over which failures of the whole site raise the alarm."""
_SITE_MINUTE = timedelta(minutes=1)
_LONG = 10
"""Characters of a long password, as it comes."""


class Outcome(Enum):
    """What `check` found."""

    SIGNED_IN = "signed_in"
    """The chosen password is right."""
    ISSUED = "issued"
    """It is the issued password of the open case: good for choosing a password and nothing else."""
    WRONG = "wrong"
    """For whatever reason: the caller says the same words for all of them."""
    THROTTLED = "throttled"
    """Nothing was looked at and nothing counted; `retry_at` says when it will be."""
    TRY_AGAIN = "try_again"
    """This host lacks a key; nothing was counted."""


@dataclass(frozen=True, slots=True, repr=False)
class Rules:
    """What the operator configured, as the sign-in needs it."""

    guesses: int
    guess_window: timedelta
    network_failures: int
    network_window: timedelta
    site_failures: int
    """In an hour: they raise the alarm."""
    site_failures_minute: int
    """Within a minute: beyond them only known devices are looked at."""
    issuing: Keyring
    peppers: Keyring
    lacks_keys: bool = False
    """This host cannot read every key that is in use."""


@dataclass(frozen=True, slots=True, repr=False)
class Checked:
    """An outcome with what belongs to it: a login if there is one to sign in, the case of an issued password."""

    outcome: Outcome
    login: Login | None = None
    case_id: UUID | None = None
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True, repr=False)
class _Facts:
    """What the store knows about one attempt, at one moment under the locks."""

    now: datetime
    code: str | None
    approved: bool
    login_id: int | None
    encoded: str | None
    taken_over: str | None
    """The hash of another system that the account still has."""
    decoy: str | None
    """Another account's; none if nobody has one."""
    active: bool
    case: UUID | None
    key: str
    version: int
    length: int
    alphabet: str
    device: int | None
    """As KNOWN_DEVICE has it."""
    guesses: int
    """Wrong ones that count: of this device if it is known, else of all unknown devices together."""
    site: int
    """Failures of the whole site within the last minute, counted up to the limit."""
    failures: Sequence[datetime]
    """The network's latest in its window, newest first."""
    login: tuple[Any, ...]
    account: tuple[Any, ...]
    """Their rows, as _LOGIN and _ACCOUNT name the columns."""

    @property
    def usable(self) -> bool:
        """Whether anybody may sign in by this name at all: an approved account, or an operator."""
        return self.active and (self.approved if self.code else self.login_id is not None)

    @property
    def is_long(self) -> bool:
        """Whether there is an open case, whose password nobody can guess."""
        return self.case is not None and not guessable(self.length, self.alphabet)


KNOWN_DEVICE = """
left join lateral (
  select d.id from device d where d.login_id = l.id and d.token_hash = %(device)s
    and (select count(*) from guess g where g.account = a.code and not g.cleared
      and g.at > t.now - %(guess_window)s and g.device = d.id) < %(guesses)s
) d on true
"""
"""SQL, of the device that an attempt comes from: known, and with guesses of its own left. One that has used them up is
as an unknown one, and shares what those have together: else an owner who tried twenty forgotten passwords would be
worse off on the own phone than any stranger. So n known devices and all unknown ones have n + 1 times the guesses.
"""

_LOGIN = [field.attname for field in Login._meta.concrete_fields]
_ACCOUNT = [field.attname for field in Account._meta.concrete_fields]
_GATHER = f"""
select t.now, a.code, coalesce(a.state = 'approved', false), l.id, l.password,
       (select hash from taken_over_password o where o.code = a.code),
       coalesce((select hash from taken_over_password o where o.code >= %(somebody)s order by o.code limit 1),
           (select hash from taken_over_password o order by o.code limit 1)),
       coalesce(l.is_active, true),
       c.id, c.key, c.version, c.length, c.alphabet, d.id,
       (select count(*) from guess g where g.account = a.code and not g.cleared
           and g.at > t.now - %(guess_window)s and g.device is not distinct from d.id),
       (select count(*) from (select from guess g where g.at > t.now - %(minute)s limit %(site)s) x),
       array(select g.at from guess g where g.network = %(network)s and g.at > t.now - %(network_window)s
           order by g.at desc limit %(network_failures)s),
       {", ".join(f"l.{name}" for name in _LOGIN)}, {", ".join(f"a.{name}" for name in _ACCOUNT)}
from (select clock_timestamp() as now) t
left join account a on a.code = %(name)s
left join login l on l.username = %(name)s
left join reissue_case c on c.account = a.code and c.ended_at is null and c.expires_at > t.now
{KNOWN_DEVICE}
"""  # noqa: S608 - names of columns, and a constant


_TAKE_BACK = """
with same as (
  select from login where id = %s and password = %s and is_active
), gone as (
  delete from guess using same where guess.id = %s returning 1
)
select set_config('synchronous_commit', 'off', true) from gone
"""
"""Nobody waits for the disk: a crash of the database that forgets it costs the person a guess."""

_BOOK = "insert into guess (account, device, network) values (%s, %s, %s) returning id"


def check(username: str, password: str, *, device: str | None, network: str, rules: Rules) -> Checked:
    """Decide whether this name and password may sign in, and count a guess if not.

    `username`: a code (ten digits) or an operator's name, exact. `device`: the token that the device brought.
    `network`: as the caller names networks. Never raises for anything a stranger can send, and takes the same
    time for a wrong password and for a name that nobody has: one hash, and one of another system's while there are any.
    """
    if rules.lacks_keys:  # for all alike: else a stranger could tell whose case or password needs the key
        return Checked(Outcome.TRY_AGAIN)
    with db.together() as cursor:
        locks.take(cursor, keys_of(username, network))
        facts = _gather(cursor, username, device, network, rules)
        issued = _is_long_issued(password, facts, rules)
        if not issued and (until := _throttled_until(facts, rules)):
            return Checked(Outcome.THROTTLED, retry_at=until)
        # Without a usable password Django hashes something else instead: the same time for all.
        encoded = (facts.usable and facts.encoded) or UNUSABLE_PASSWORD_PREFIX
        accepts_issued = facts.usable and _accepts_issued(facts, rules)
        # All keys before the first comparison that counts: what is compared must be counted if it is wrong.
        if not issued and not (
            _has_pepper(encoded, rules) and (not accepts_issued or has_issuing(facts.key, rules))
        ):
            return Checked(Outcome.TRY_AGAIN)
        issued = issued or (accepts_issued and not facts.is_long and _is_issued(password, facts, rules))
        if not issued:
            cursor.execute(_BOOK, [facts.code, facts.device, network])
    if issued:
        assert facts.code
        return Checked(Outcome.ISSUED, login_of(facts.code), facts.case)
    (guess,) = db.row(cursor)
    if facts.taken_over and facts.usable and not is_password_usable(encoded):
        if verify_password(password, facts.taken_over)[0]:
            return _renew(facts, guess, make_password(password))
        make_password(password)  # for its time alone
        return _wrong(guess, rules)
    right, stale = verify_password(password, encoded)
    if right:
        login = _login(facts)
        if stale and not _store_anew(login, password):
            return Checked(Outcome.WRONG)
        # It may have been replaced meanwhile.
        taken_back = db.execute(_TAKE_BACK, [facts.login_id, login.password, guess]).fetchone()
        return Checked(Outcome.SIGNED_IN, login) if taken_back else Checked(Outcome.WRONG)
    if facts.decoy:
        verify_password(password, facts.decoy)  # for its time alone
    return _wrong(guess, rules)


def _wrong(guess: int, rules: Rules) -> Checked:
    """It stays booked."""
    # Counting a site's hour takes a moment, so one in a hundred of the bound counts.
    if guess % max(1, rules.site_failures // 100) == 0:
        _raise_alarm(rules)
    return Checked(Outcome.WRONG)


def lock(username: str) -> None:
    """Hold the account's lock until the transaction (of Django's connection) ends."""
    connection.ensure_connection()
    locks.take(connection.connection, keys_of(username))


def keys_of(username: str, network: str | None = None) -> list[int]:
    """The locks of an account's code, if it is one, and of a network."""
    keys = [locks.network_key(network)] if network is not None else []
    if len(username) == CODE_LENGTH and username.isascii() and username.isdigit():
        keys.append(locks.account_key(username))
    return keys


def _gather(cursor: psycopg.Cursor, username: str, device: str | None, network: str, rules: Rules) -> _Facts:
    values: dict[str, Any] = {
        "name": username,
        "device": hash_of(device) if device else None,
        "network": network,
        "guess_window": rules.guess_window,
        "guesses": rules.guesses,
        "network_window": rules.network_window,
        "network_failures": rules.network_failures,
        "minute": _SITE_MINUTE,
        "somebody": _somebody(username, rules),
        "site": rules.site_failures_minute,
    }
    row = db.row(cursor.execute(_GATHER, values))
    account = len(row) - len(_ACCOUNT)
    login = account - len(_LOGIN)
    return _Facts(*row[:login], row[login:account], row[account:])  # type: ignore[call-arg]


def _login(facts: _Facts) -> Login:
    """The login that was found, with its account if it has one."""
    login = Login.from_db("default", _LOGIN, facts.login)
    if facts.code is not None:
        login.account = Account.from_db("default", _ACCOUNT, facts.account)
    return login


def _somebody(name: str, rules: Rules) -> str:
    """Where the search for this name's decoy begins: a code that nobody outside can foresee."""
    digest = hmac.digest(rules.peppers.keys[rules.peppers.active], b"decoy/" + _octets(name), "sha256")
    return str(int.from_bytes(digest) % 10**CODE_LENGTH).zfill(CODE_LENGTH)


def _throttled_until(facts: _Facts, rules: Rules) -> datetime | None:
    # A citizen's known device does not pay for its network's strangers; its own guesses bound it.
    if facts.code is not None and facts.device is not None:
        return None
    if facts.site >= rules.site_failures_minute:
        return facts.now + _SITE_MINUTE
    limit = rules.network_failures
    return facts.failures[limit - 1] + rules.network_window if len(facts.failures) >= limit else None


def _is_long_issued(password: str, facts: _Facts, rules: Rules) -> bool:
    """Whether it is the issued password of an open case, one that nobody can guess: strangers never block that, neither
    by using up guesses nor by the throttle, which spares hashes that it needs none of. Wrong ones need not be counted.

    Whoever has no such case costs the same: a password that nobody has is derived and compared.
    """
    real = facts.usable and facts.is_long and rules.issuing.get(facts.key) is not None
    if real:
        return _is_issued(password, facts, rules)
    nobodys = Inputs(VERSION, UUID(int=0), "0" * CODE_LENGTH, _LONG, LETTERS)
    matches(rules.issuing.keys[rules.issuing.active], nobodys, password)
    return False


def _is_issued(password: str, facts: _Facts, rules: Rules) -> bool:
    assert facts.code and facts.case
    inputs = Inputs(facts.version, facts.case, facts.code, facts.length, facts.alphabet)
    return matches(rules.issuing.keys[facts.key], inputs, password)


def _accepts_issued(facts: _Facts, rules: Rules) -> bool:
    return facts.is_long or (facts.case is not None and facts.guesses < rules.guesses)


def has_issuing(key: str, rules: Rules) -> bool:
    """Whether this host has the issuing key; that it lacks one is logged."""
    if rules.issuing.get(key) is not None:
        return True
    _tell_missing("issuing key", key)
    return False


def _has_pepper(encoded: str, rules: Rules) -> bool:
    if not is_password_usable(encoded):
        return True
    pepper = identify_hasher(encoded).decode(encoded).get("pepper")
    if pepper is None or rules.peppers.get(pepper) is not None:
        return True
    _tell_missing("pepper", pepper)
    return False


@cache
def _tell_missing(kind: str, key: str) -> None:
    """Once in a process for each key: people meet it many times a second."""
    log.error("the %s %s is missing on this host: whose password needs it is told to try again", kind, key)


def hold_active(login: Login, **same: str) -> bool:
    """Whether the login is (still) active and the `same`; if so it stays, until the transaction ends."""
    held = Login.objects.select_for_update(no_key=True).filter(pk=login.pk, is_active=True, **same)
    return held.values("pk").first() is not None


def login_of(code: str) -> Login:
    """The login of an account, made at its first sign-in. Under the account's lock, so nobody else makes it."""
    unusable = {"username": code, "password": make_password(None)}
    return Login.objects.select_related("account").get_or_create(account_id=code, defaults=unusable)[0]


def _store_anew(login: Login, password: str) -> bool:
    """Hash it as it is hashed today, unless it was replaced since it was verified; whether it still is the one."""
    verified, login.password = login.password, make_password(password)
    same = Login.objects.filter(pk=login.pk, password=verified, is_active=True)
    return bool(same.update(password=login.password))


def _renew(facts: _Facts, guess: int, encoded: str) -> Checked:
    """A taken-over password was right: from now on it is one of ours."""
    assert facts.code
    with transaction.atomic():
        lock(facts.code)
        # Only if it is still the one that was verified: it may have been ended meanwhile, or renewed.
        ended, _ = TakenOverPassword.objects.filter(code=facts.code, hash=facts.taken_over).delete()
        approved = Account.objects.filter(code=facts.code, state=Account.State.APPROVED).exists()
        held = Hold.objects.filter(account=facts.code, lifted_at__isnull=True).exists()
        login = login_of(facts.code) if ended and approved and not held else None
        if login is None or not hold_active(login):
            transaction.set_rollback(True)
            return Checked(Outcome.WRONG)
        login.password = encoded
        login.save(update_fields=["password"])
        Guess.objects.filter(pk=guess).delete()
    return Checked(Outcome.SIGNED_IN, login)


def _raise_alarm(rules: Rules) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into switch (name, value, changed_at)"
            " select %(alarm)s, jsonb_build_object('until', clock_timestamp() + %(lasts)s), clock_timestamp()"
            " where (select count(*) from guess where at > clock_timestamp() - %(window)s) >= %(failures)s"
            " on conflict (name) do update set value = excluded.value, changed_at = excluded.changed_at"
            " where coalesce((switch.value->>'until')::timestamptz <= clock_timestamp(), true)",
            {"alarm": ALARM, "lasts": _ALARM_LASTS, "window": SITE_WINDOW, "failures": rules.site_failures},
        )
        if cursor.rowcount:
            log.warning(
                "%d failed sign-ins within an hour: for an hour, new cases get long passwords",
                rules.site_failures,
            )


def hash_of(token: str) -> bytes:
    """What the store keeps of a device's token."""
    return hashlib.sha256(_octets(token)).digest()


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
