"""The ledger: whether what the phones sent and got, and what the store holds, are one story.

- Each message that the carrier got an OK for is in the inbox, with one outcome, and exactly once within SAME. What
  comes again later is another message by the rule of service.md; it is counted, and opens no case while one lives.
- Each message that is to be answered has one reply, which was sent (or whose password had ended by then); the
  phone got it, at least once.
- Each password that a phone got is that of a case of an account of its own.
- No account has two open cases; of all passwords that came for one with an open case, exactly one is good.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from uuid import UUID

import psycopg

from bench._load import PASSWORD, Phones, phone_of
from caplai.domain.issuing import Inputs, Keyring, derive
from caplai.simulator import Simulator

SAME = 60
"""Seconds within which a redelivery is the same message (service.md)."""

_NONE_OF_THESE = {
    "without an outcome": "select count(*) from inbox where outcome is null",
    "parked": "select count(*) from inbox where error is not null",
    "answered not exactly once": "select count(*) from (select i.id from inbox i left join outbox o"
    " on o.inbox_id = i.id where i.outcome not in ('other_agency', 'silenced') group by i.id"
    " having count(o.id) <> 1) x",
    "silent, yet answered": "select count(*) from inbox i join outbox o on o.inbox_id = i.id"
    " where i.outcome in ('other_agency', 'silenced')",
    "replies not sent": "select count(*) from outbox where state not in ('sent', 'expired')",
    "replies dropped although their password was good": "select count(*) from outbox o join reissue_case c"
    " on c.account = o.account and c.id = o.case_id where o.state = 'expired' and c.ended_at is null",
    "accounts with two open cases": "select count(*) from (select account from reissue_case"
    " where ended_at is null group by account having count(*) > 1) x",
    "replies to another phone": "select count(*) from outbox o join account a on a.code = o.account"
    " where '+' || o.destination <> a.phone",
}


async def settle(
    dsn: str, simulator: Simulator, seconds: float = 120.0, meanwhile: Callable[[], object] = lambda: None
) -> bool:
    """Wait until the carrier has got rid of everything and every message and reply has its end; whether it has."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(0.5)
        meanwhile()
        if simulator.smsc.waiting == 0 and await asyncio.to_thread(_undone, dsn) == 0:
            return True
    return False


def _undone(dsn: str) -> int | None:
    try:
        with psycopg.connect(dsn, autocommit=True) as conn:
            row = conn.execute(
                "select (select count(*) from inbox where outcome is null)"
                " + (select count(*) from outbox where state in ('ready', 'claimed'))"
            ).fetchone()
    except psycopg.OperationalError:
        return None
    return row[0] if row else None


def check(dsn: str, phones: Phones, keyring: Keyring) -> list[str]:
    """What is broken, each a line without a phone or a code; empty when all is well."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        return [
            *_stored(conn, phones),
            *_rows(conn),
            *_replies(conn, phones),
            *_passwords(conn, phones, keyring),
        ]


def _stored(conn: psycopg.Connection, phones: Phones) -> list[str]:
    stored = Counter(
        dict(conn.execute("select text || '|' || source, count(*) from inbox group by 1").fetchall())
    )
    taken = {f"{text.words}|{text.phone}" for text in phones.sent if text.acknowledged}
    broken = [f"acknowledged and not stored: …{key[-3:]}" for key in taken if key not in stored]
    for [words, source, times] in conn.execute(_TWINS, [SAME]).fetchall():
        twins = conn.execute(
            "select i.id, to_char(i.received_at, 'MI:SS.MS'), i.session, i.outcome, s.engine,"
            " to_char(s.started_at, 'MI:SS.MS'), to_char(s.confirmed_at, 'MI:SS.MS')"
            " from inbox i left join link_session s on s.id = i.session"
            " where i.text = %s and i.source = %s order by i.id",
            [words, source],
        ).fetchall()
        broken.append(
            f"stored again {times} times within {SAME} s (id, at, session, outcome, engine, bound, confirmed): {twins}"
        )
    return broken


_TWINS = """
select text, source, count(*) from (
  select text, source, received_at - lag(received_at) over (partition by text, source order by received_at) as since
  from inbox
) x where since <= make_interval(secs => %s) group by text, source
"""


def stored_again(dsn: str) -> int:
    """How often a text was stored once more. Each is sent once, so the carrier delivered it again."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(
            "select count(*) - count(distinct (text, source)) from inbox where text is not null"
        ).fetchone()
    return row[0] if row else 0


def _rows(conn: psycopg.Connection) -> list[str]:
    counts = {}
    for says, query in _NONE_OF_THESE.items():
        row = conn.execute(query).fetchone()
        counts[says] = row[0] if row else 0
    return [f"{says}: {count}" for says, count in counts.items() if count]


def _replies(conn: psycopg.Connection, phones: Phones) -> list[str]:
    sent = conn.execute("select destination, count(*) from outbox where state = 'sent' group by 1").fetchall()
    return [
        f"a phone got {len(phones.got[phone])} of {count} replies"
        for phone, count in sent
        if len(phones.got[phone]) < count
    ]


def _passwords(conn: psycopg.Connection, phones: Phones, keyring: Keyring) -> list[str]:
    issued: dict[str, set[str]] = {}
    for account, case, key, version, length, alphabet in conn.execute(
        "select account, id, key, version, length, alphabet from reissue_case"
    ).fetchall():
        inputs = Inputs(version, UUID(str(case)), account, length, alphabet)
        issued.setdefault(account, set()).add(derive(keyring.keys[key], inputs))
    broken = []
    for code, passwords in phones.passwords.items():
        if not set(passwords) <= issued.get(code, set()):
            broken.append("a phone got a password that is no case's")
    wrong = [
        phone
        for phone, texts in phones.got.items()
        for text in texts
        if (match := PASSWORD.search(text)) and phone_of(match[1]) != phone
    ]
    return broken + ["a password went to a phone that is not its account's"] * len(wrong)


def check_sample(phones: Phones, draw: random.Random, size: int = 50) -> tuple[int, list[str]]:
    """Try every password that came for some accounts: (how many are good, what is broken).

    The one that came for the open case is good, and no other one. Needs Django on that database.
    """
    from django.db import connection

    from caplai.service.credentials import Outcome, check
    from caplai.signin.backend import rules
    from caplai.store.models import Case

    connection.close()
    open_cases = set(Case.objects.filter(ended_at__isnull=True).values_list("account", flat=True))
    codes = sorted(code for code in phones.passwords if code in open_cases)
    good, broken = 0, []
    for n, code in enumerate(draw.sample(codes, min(size, len(codes)))):
        outcomes = [
            check(code, password, device=None, network=f"10.0.0.{n}", rules=rules()).outcome
            for password in phones.passwords[code]
        ]
        found = outcomes.count(Outcome.ISSUED)
        good += found
        if found > 1:
            broken.append("two issued passwords are good for one account")
    if good < min(size, len(codes)):
        broken.append(f"only {good} of {min(size, len(codes))} passwords sign in")
    return good, broken
