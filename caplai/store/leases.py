"""Who holds a link: a session-level advisory lock for each bind that a link may have.

The lock lives as long as the database connection that took it, so it is free as soon as its engine is dead
or cut off, and there is no clock to agree on.
"""

import psycopg

from caplai.store.db import DatabaseThreads, named_lock

_LEASE = 4


class Leases:
    """The leases of one engine, all on one connection of their own."""

    def __init__(self) -> None:
        self._threads = DatabaseThreads(1)
        self._connection: psycopg.Connection | None = None
        self._held: set[str] = set()

    async def hold(self, link: str, binds: int) -> bool:
        """Whether this engine holds one of the link's `binds` leases, taking one if it can.

        To be asked about once a second: it also notices that the connection, and with it the leases, is lost.
        Raises psycopg.Error while the database is away; then nobody can take them either.
        """
        return await self._threads.run(self._hold, link, binds)

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
            row = connection.execute(
                "select pg_try_advisory_lock(%s)", [named_lock(_LEASE, f"{link}/{slot}")]
            ).fetchone()
            if row is not None and row[0]:
                self._held.add(link)
                return True
        return False
