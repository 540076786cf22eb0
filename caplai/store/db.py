"""Connections for those who write set-based SQL: on connections of their own (the engine's threads), or on Django's."""

import asyncio
import contextlib
import functools
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import lru_cache
from types import NoneType
from typing import Any, LiteralString, TypeVar
from uuid import UUID

import psycopg
from django.db import connections
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from caplai.store.keyring import KeyringError

T = TypeVar("T")


# A host that vanishes without a word must not hold a thread for the quarter of an hour that TCP would wait,
_NETWORK = {
    "connect_timeout": "5",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "2",
}
# nor hold its locks for the two hours that the server's kernel would; and one that hangs, its transaction's.
# What the operator's URL sets comes after it, and so stands above.
_SERVER = (
    "-c tcp_user_timeout=5000 -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=2"
    " -c idle_in_transaction_session_timeout=15000"
)

_DJANGO = "caplai-django"  # the application_name of Django's connections


def django_database(conninfo: str) -> dict[str, object]:
    """Django's DATABASES entry for a libpq conninfo or `postgresql://` URL."""
    parts = conninfo_to_dict(conninfo)
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    database: dict[str, object] = {
        ours: str(parts.pop(theirs)) for theirs, ours in names.items() if parts.get(theirs)
    }
    parts = {"application_name": _DJANGO, **_NETWORK, **parts}
    parts["options"] = f"{_SERVER} {parts.get('options') or ''}".strip()
    return {
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": parts,
        **database,
    }


def conninfo() -> str:
    """The libpq conninfo of Django's database (in tests: of the test database), for connections that are not
    Django's. Holds its password.
    """
    settings = connections["default"].settings_dict
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    parts = {theirs: settings[ours] for ours, theirs in names.items() if settings.get(ours)}
    options = {key: str(value) for key, value in settings["OPTIONS"].items() if isinstance(value, str | int)}
    if options.get("application_name") == _DJANGO:
        options["application_name"] = "caplai"
    return make_conninfo(**{**parts, **options})


_BY_KEY = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c plan_cache_mode=force_generic_plan"


def connect(
    *,
    connect_timeout: int = 10,
    statement_timeout: float | None = None,
    idle_timeout: float | None = None,
    by_key: bool = False,
) -> psycopg.Connection:
    """A psycopg connection in autocommit; transactions are opened where they are meant. Times in seconds.

    The server ends it when nothing is asked for `idle_timeout`. `by_key`: for batches of rows that are found by an
    index. Planned once, and never to read a whole table because it was small when somebody last looked: a queue's
    table grows by millions between two looks of autovacuum.
    """
    parts: dict[str, Any] = {
        **conninfo_to_dict(conninfo()),
        "connect_timeout": str(connect_timeout),
    }
    for name, seconds in {
        "statement_timeout": statement_timeout,
        # Of a transaction that stands idle for as long, its client hangs.
        "idle_in_transaction_session_timeout": statement_timeout,
        "idle_session_timeout": idle_timeout,
    }.items():
        if seconds is not None:  # what the operator's URL sets goes on holding
            parts["options"] = f"{parts.get('options') or ''} -c {name}={int(seconds * 1000)}".strip()
    if by_key:
        parts["options"] = f"{_BY_KEY} {parts.get('options') or ''}".strip()
    return psycopg.connect(make_conninfo(**parts), autocommit=True)


def execute(query: LiteralString, values: Sequence[object] | Mapping[str, object]) -> psycopg.Cursor[Any]:
    """One statement on Django's connection, bound and prepared by the server (Django's own cursors do neither:
    parsing and planning cost PostgreSQL more than executing what looks at a few rows). Raises Django's errors.
    """
    with connections["default"].wrap_database_errors:
        return _cursor().execute(query, values)


@contextlib.contextmanager
def together() -> Iterator[psycopg.Cursor[Any]]:
    """A transaction on Django's connection, whose statements go out together: only fetching waits for the server.

    Inside, everything is written by this cursor, or by `execute`; the ORM would begin a transaction of its own. In
    a transaction of Django's it is a part of that. What the last statement returned can be fetched afterwards, too.
    Raises Django's errors.
    """
    django = connections["default"]
    cursor = _cursor()
    conn = cursor.connection
    with django.wrap_database_errors:
        if django.in_atomic_block:
            with conn.pipeline():
                yield cursor
            return
        edges = psycopg.Cursor(conn)
        failure: BaseException | None = None
        try:
            with conn.pipeline():
                edges.execute("begin", prepare=False)
                try:
                    yield cursor
                    edges.execute("commit", prepare=False)
                except BaseException as error:
                    failure = error  # raised below: to a pipeline that ends with it psycopg has more to say
        except BaseException as error:
            # What nobody waited for has failed, and then nothing after it was done, nor the commit.
            failure = failure or error
        if failure is not None:
            with contextlib.suppress(psycopg.Error):  # a connection that is gone has rolled back
                conn.rollback()
            raise failure


def row(cursor: psycopg.Cursor[Any]) -> tuple[Any, ...]:
    """The next row, where there is one for certain."""
    found = cursor.fetchone()
    assert found is not None
    return found


def _cursor() -> psycopg.Cursor[Any]:
    django = connections["default"]
    django.close_if_health_check_failed()
    django.ensure_connection()
    conn = django.connection
    if conn.prepare_threshold is None:
        conn.prepare_threshold = 1
    return psycopg.Cursor(conn)


def array(values: Iterable[object]) -> str:
    """A column of values as PostgreSQL reads an array; the statement casts it (`%s::text[]`).

    Three times as fast as psycopg's own way, which looks at each value for itself. Text, numbers, booleans, octets,
    times, UUIDs and None.
    """
    column = list(values)
    if not column:
        return "{}"
    try:
        joined = '","'.join(column)  # type: ignore[arg-type]
    except TypeError:
        return "{" + ",".join([_ELEMENT.get(type(value), _element)(value) for value in column]) + "}"
    if "\\" in joined or joined.count('"') > 2 * len(column) - 2:
        joined = '","'.join([str(value).replace("\\", r"\\").replace('"', r"\"") for value in column])
    return '{"' + joined + '"}'


def _element(value: object) -> str:
    escaped = str(value).replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


_ELEMENT: dict[type, Callable[[Any], str]] = {
    NoneType: lambda value: "NULL",
    int: str,
    UUID: lambda value: value.hex,
    datetime: lru_cache(4096)(lambda value: f'"{value.isoformat()}"'),  # batches have few different ones
    bytes: lambda value: rf'"\\x{value.hex()}"',
}


def named_lock(kind: int, name: str) -> int:
    """The key of an advisory lock: a kind of its own (1 to 127) and a hash of the name.

    Kinds in use: 1 account, 2 phone, 3 network (service/locks.py), 4 lease of a link (leases.py), 5 accepting on a
    link, 6 agreeing on keys (service/keys.py), 7 matching receipts, 9 retention, 10 figures, 11 one-time codes
    (service/forgotten_facts.py).
    """
    return kind << 56 | int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big")


def is_at_fault_itself(error: Exception) -> bool:
    """Whether the data makes our code fail, rather than the state that database, keyring or host are in.

    Only then is it right to set the data aside for good: everything else heals, and the data waits.
    """
    if isinstance(error, psycopg.Error):
        return isinstance(error, psycopg.DataError | psycopg.IntegrityError)
    return not isinstance(error, KeyringError | OSError | MemoryError)


class DatabaseThreads:
    """Worker threads, each with a psycopg connection of its own, for an asyncio loop that must not wait.

    A connection that broke is made anew at the next call. Connecting waits `connect_timeout` seconds at
    most, a statement `statement_timeout`, so that a call fails before a carrier's patience ends. `idle_timeout` and
    `by_key` as for connect().
    """

    def __init__(
        self,
        size: int,
        *,
        connect_timeout: int = 2,
        statement_timeout: float = 3.0,
        idle_timeout: float | None = None,
        by_key: bool = False,
    ) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="db")
        self._local = threading.local()
        self._connections: list[psycopg.Connection] = []
        self._connect = functools.partial(
            connect,
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
            idle_timeout=idle_timeout,
            by_key=by_key,
        )

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`function(connection, *args, **kwargs)` in a thread; raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, functools.partial(self._call, function, *args, **kwargs)
        )

    def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        connection = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            connection = self._local.connection = self._connect()
            self._connections.append(connection)
        try:
            return function(connection, *args, **kwargs)
        except psycopg.Error:
            # A restarted server leaves a connection that does not know that it is broken, a failover one to
            # what is no primary any more: a new one finds out.
            connection.close()
            self._connections.remove(connection)
            raise

    def close(self, *, cancel: bool = False) -> None:
        """Wait for the calls under way, then close the connections. `cancel`: what they are asking for is ended."""
        if cancel:
            for connection in self._connections:
                with contextlib.suppress(psycopg.Error):
                    connection.cancel_safe(timeout=2.0)
        self._pool.shutdown(wait=True, cancel_futures=True)
        for connection in self._connections:
            connection.close()
