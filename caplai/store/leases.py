"""Who holds a link: a session-level advisory lock for each bind that a link may have.

The lock lives as long as the database connection that took it. That ends with its engine; and the server ends
it when nothing was asked on it for `TTL` seconds, because its engine hangs or is cut off. So there is no clock to
agree on, and an engine that was away knows by its own that it may hold nothing any more.
"""

import time

import psycopg

from caplai.store.db import DatabaseThreads, named_lock

_LEASE = 4
TTL = 8.0
"""Seconds for which a lease is certain after it was asked about."""


class Leases:
    """The leases of one engine, all on one connection of their own."""

    def __init__(self) -> None:
        self._threads = DatabaseThreads(1, idle_timeout=TTL)
        self._connection: psycopg.Connection | None = None
        self._held: dict[str, int] = {}
        self._certain_at: dict[str, float] = {}

    async def hold(self, link: str, binds: int) -> bool:
        """Whether this engine holds one of the link's `binds` leases, taking one if it can.

        To be asked about once a second: it also notices that the connection, and with it the leases, is lost.
        Raises psycopg.Error while the database is away, at least from here.
        """
        asked = time.monotonic()  # before: the server's clock starts when it answers
        held = await self._threads.run(self._hold, link, binds)
        if held:
            self._certain_at[link] = asked
        return held

    async def release(self, link: str) -> None:
        """Give the link's lease up. Raises psycopg.Error; the lease has then ended with its connection."""
        self._certain_at.pop(link, None)
        await self._threads.run(self._release, link)

    def age(self, link: str) -> float:
        """Seconds since we were certain to hold the link. Below TTL nobody else can hold our lease."""
        return time.monotonic() - self._certain_at.get(link, float("-inf"))

    def close(self) -> None:
        """Give all of them up."""
        self._threads.close()

    def _hold(self, connection: psycopg.Connection, link: str, binds: int) -> bool:
        if connection is not self._connection:
            self._connection = connection
            self._held.clear()
        if link in self._held:
            connection.execute("select 1")
            return True
        for slot in range(binds):
            row = connection.execute("select pg_try_advisory_lock(%s)", [_key(link, slot)]).fetchone()
            if row is not None and row[0]:
                self._held[link] = slot
                return True
        return False

    def _release(self, connection: psycopg.Connection, link: str) -> None:
        slot = self._held.pop(link, None)
        if slot is not None and connection is self._connection:
            connection.execute("select pg_advisory_unlock(%s)", [_key(link, slot)])


def _key(link: str, slot: int) -> int:
    return named_lock(_LEASE, f"{link}/{slot}")
