"""A forgotten password: prove the one-time code, or open the link, that forgotten.py had sent.

The proof ends in the one `reissue` behind every door, in the same transaction and under the same locks.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from uuid import UUID

import psycopg

from caplai.domain import otp
from caplai.domain.otp import Channel
from caplai.domain.policy import GRANTED
from caplai.service import credentials, forgotten_mail
from caplai.service.forgotten_came import Came, came_of, request_for
from caplai.service.forgotten_facts import (
    LINKED,
    PROVED,
    Asker,
    Facts,
    Row,
    Rules,
    find,
    gather_facts,
    hash_of,
    insist_on_keys,
    lock_request,
    named,
    one_transaction,
)
from caplai.service.reissue import reissue
from caplai.store.models import Login
from caplai.watch import metrics


class Proof(Enum):
    """What `prove` found."""

    DONE = "done"
    """The OTP was right; `came` says what of it."""
    WRONG = "wrong"
    """Not the OTP, for whatever reason; `tries` are left."""
    OVER = "over"
    """The request has ended: too late, too many tries, proved before, or another one stands in its place."""
    THROTTLED = "throttled"
    """Nothing was looked at and nothing counted; `retry_at` says when it will be."""
    TRY_AGAIN = "try_again"
    """This host lacks a key, or the account's phone changed at this very moment; nothing was counted."""


@dataclass(frozen=True, slots=True, repr=False)
class Proved:
    """An outcome with what belongs to it. `login` and `case_id`: to choose a password on the spot."""

    proof: Proof
    came: Came | None = None
    tries: int = 0
    retry_at: datetime | None = None
    login: Login | None = None
    case_id: UUID | None = None


def prove(secret: str | None, typed: str, asker: Asker, *, rules: Rules) -> Proved:
    """Try an OTP. The right one re-issues, in this transaction; a wrong one counts against request, account, network.

    Once the guesses at an account are used up no six digits open it, neither a password's nor an OTP's
    (service.md, Guesses): then this says WRONG, and only the short code helps.
    """
    insist_on_keys(rules)
    with one_transaction() as conn:
        locked = lock_request(conn, lambda: find(conn, secret), asker)
        if locked is None:
            return Proved(Proof.OVER)
        row = locked.row
        facts = gather_facts(conn, row.code, asker, rules, row.channel)
        if not (row.seems_alive(facts.now) or _is_open_to_its_digits(conn, row, facts, rules)):
            return Proved(Proof.OVER)
        if facts.phone != locked.phone:
            return Proved(Proof.TRY_AGAIN)
        if until := _throttled_until(facts, rules):
            return Proved(Proof.THROTTLED, retry_at=until)
        key = rules.signin.issuing.get(row.key)
        if key is None:
            return Proved(Proof.TRY_AGAIN)
        right = otp.matches(key, otp.Inputs(row.version, row.id, row.code), typed)
        if not (_is_theirs(row, facts) and facts.is_reachable(rules) and right):
            return _count_wrong(conn, row, facts, asker)
        if row.ended_as == LINKED and not _is_open_to_its_link(conn, row, facts):
            return Proved(Proof.OVER)  # used up by the link, and only who has the digits hears so
        return _reissue(conn, row, facts, rules, PROVED)


def prove_link(token: str, asker: Asker, *, rules: Rules, kept: Collection[str] = ()) -> Proved:
    """Open the link of an e-mail, in whatever browser. It may be opened again until a password is chosen, for the first
    time may have been a mail program's.

    `kept`: what this browser keeps of requests. If it is none of them, whoever asked for the mail sees nothing of it.

    Its 128 bits need no count of tries, and used-up guesses do not close it. OVER for anything that does not open.
    """
    insist_on_keys(rules)
    name = forgotten_mail.named_by(token, rules.signin.issuing.keys.values())
    if name is None:
        return Proved(Proof.OVER)
    with one_transaction() as conn:
        locked = lock_request(conn, lambda: named(conn, name), asker)
        if locked is None:
            return Proved(Proof.OVER)
        row = locked.row
        facts = gather_facts(conn, row.code, asker, rules, row.channel)
        if facts.phone != locked.phone:  # as in prove()
            return Proved(Proof.OVER)
        if not (_is_open_to_its_link(conn, row, facts) and _is_theirs(row, facts) and facts.approved):
            return Proved(Proof.OVER)
        asked_here = row.ended_as == PROVED or bytes(row.secret_hash) in map(hash_of, kept)
        return _reissue(conn, row, facts, rules, PROVED if asked_here else LINKED)


def _throttled_until(facts: Facts, rules: Rules) -> datetime | None:
    """As at the sign-in: a known device does not pay for its network's strangers."""
    signin = rules.signin
    if facts.device is not None:
        return None
    if facts.site_failures >= signin.site_failures_minute:
        return facts.now + timedelta(minutes=1)
    limit = signin.network_failures
    return facts.failures[limit - 1] + signin.network_window if len(facts.failures) >= limit else None


def _is_theirs(row: Row, facts: Facts) -> bool:
    """Whether it was sent at all, and those that it was sent to are still the owner's."""
    if row.channel is Channel.EMAIL:
        addresses = forgotten_mail.fingerprint(forgotten_mail.reached(row.code))
        return row.addresses is not None and bytes(row.addresses) == addresses
    return row.phone is not None and row.phone == facts.phone


def _is_open_to_its_link(conn: psycopg.Connection, row: Row, facts: Facts) -> bool:
    if row.channel is not Channel.EMAIL or row.expires_at <= facts.now:
        return False
    if row.ended_as in (PROVED, LINKED):
        return _has_open_case(conn, row, facts)
    return row.ended_as in (None, "tried_out")


def _is_open_to_its_digits(conn: psycopg.Connection, row: Row, facts: Facts, rules: Rules) -> bool:
    """Whether the digits, which were right before, lead once more to choosing a password: the answer to the first of
    two clicks is lost to the browser, and with it the way on.
    """
    if row.ended_as != PROVED or row.expires_at <= facts.now or row.tries >= otp.TRIES:
        return False
    return rules.chooses(row.channel) and _has_open_case(conn, row, facts)


def _has_open_case(conn: psycopg.Connection, row: Row, facts: Facts) -> bool:
    """Whether what its proof opened, or joined, is not over yet."""
    found = conn.execute(
        "select exists (select from reissue_case where account = %s and ended_at is null"
        " and expires_at > %s and opened_at <= %s)",
        [row.code, facts.now, row.proved_at],
    ).fetchone()
    return bool(found and found[0])


def _count_wrong(conn: psycopg.Connection, row: Row, facts: Facts, asker: Asker) -> Proved:
    conn.execute(
        "insert into guess (account, device, network) values (%s, %s, %s)",
        [facts.account, facts.device, asker.network],
    )
    left = otp.TRIES - row.tries - 1
    conn.execute(
        "update recovery set tries = tries + 1, ended_at = coalesce(ended_at, case when %(out)s then %(now)s end),"
        " ended_as = coalesce(ended_as, case when %(out)s then 'tried_out' end) where id = %(id)s",
        {"out": left <= 0, "now": facts.now, "id": row.id},
    )
    return Proved(Proof.WRONG, tries=max(0, left))


def _reissue(conn: psycopg.Connection, row: Row, facts: Facts, rules: Rules, proved: str) -> Proved:
    assert facts.phone is not None
    phone, chooses = facts.phone, rules.chooses(row.channel)
    family = conn.execute("select count(*) from account where phone = %s", [phone]).fetchone()
    assert family is not None
    wording = rules.granted_family if family[0] > 1 else rules.granted
    request = request_for(row.code, row.channel, phone, rules, wording)
    [decision] = reissue(conn, [request], rules.reissue)
    came = came_of(conn, decision.outcome, row.code, row.channel, phone, rules)
    conn.execute(
        "update recovery set proved_at = clock_timestamp(), ended_at = clock_timestamp(), ended_as = %(proved)s,"
        " outcome = %(outcome)s, until = %(until)s, by_text = %(by_text)s where id = %(id)s",
        {
            "proved": proved,
            "outcome": str(decision.outcome),
            "until": decision.until,
            "by_text": came.by_text,
            "id": row.id,
        },
    )
    metrics.decisions.labels(str(decision.outcome)).inc()
    login = case_id = None
    if chooses and decision.outcome in GRANTED:
        login = credentials.login_of(row.code)
        found = conn.execute(
            "select id from reissue_case where account = %s and ended_at is null", [row.code]
        ).fetchone()
        assert found is not None
        case_id = found[0]
    return Proved(Proof.DONE, came, login=login, case_id=case_id)
