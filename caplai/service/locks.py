"""The locks of accounts, phones and networks: PostgreSQL advisory locks until the transaction ends.

A lock is on a subject, known or not, so a stranger's texts queue up as well as an owner's. Advisory, not
row locks: those would write to a page of a table of millions for each request. Everybody takes accounts
first, then phones, then networks, each in sorted order, so nobody waits in a circle; and counts in a later
statement, which sees what the holder before it committed.
"""

from collections.abc import Iterable

import psycopg

from caplai.store.db import array, named_lock

_ACCOUNT, _PHONE, _NETWORK = 1, 2, 3


def account_key(code: str) -> int:
    return _ACCOUNT << 56 | int(code)


def phone_key(source: str) -> int:
    """The key of a sender: of its digits, or of a hash where it is no number (alphanumeric senders)."""
    digits = source.removeprefix("+")
    if digits.isascii() and digits.isdigit() and len(digits) <= 16:
        return _PHONE << 56 | int(digits)
    return named_lock(_PHONE, source)


def network_key(network: str) -> int:
    return named_lock(_NETWORK, network)


def take(conn: psycopg.Connection | psycopg.Cursor, keys: Iterable[int]) -> None:
    """Wait for these locks, in the one order that everybody keeps, and hold them until the transaction ends."""
    wanted = sorted(set(keys))
    if wanted:
        conn.execute(
            "select count(pg_advisory_xact_lock(key)) from unnest(%s::bigint[]) as key", [array(wanted)]
        )
