"""Whether a process can serve: what /readyz says of the database, the tables and the keys."""

import asyncio
import logging
import platform
import threading
import time
from collections.abc import Callable
from functools import cache

import psycopg
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse

from caplai import __version__
from caplai.config import Config
from caplai.store.db import connect
from caplai.store.keyring import KINDS, KeyringError, Keys
from caplai.watch import metrics, tracing
from caplai.watch.listener import Gauges, Listener, no_gauges, readiness, start_in_thread

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds that a probe waits for the database; balancers ask every few seconds and wait about as long."""
FRESH = 0.5
"""Seconds for which what was found is told again: anybody may ask."""


class Health:
    """`problems()` says what keeps this process from serving, in plain words without a secret, within about
    a second, whatever state the database is in.
    """

    def __init__(self, keyring: Keys, own: Callable[[], list[str]] = list) -> None:
        """`own`: what else the process itself knows to be wrong; it must not wait."""
        self._keyring, self._own = keyring, own
        self._lock = threading.Lock()
        self._look: _Look | None = None
        self._connection: psycopg.Connection | None = None
        self._was_ready = True

    def problems(self) -> list[str]:
        with self._lock:
            if self._look is None or (self._look.over and time.monotonic() - self._look.began > FRESH):
                self._look = _Look()
                # A daemon: one that hangs in a dead database's socket must not keep us from ending.
                threading.Thread(target=self._examine, args=[self._look], name="health", daemon=True).start()
            look = self._look
        look.done.wait(max(0.0, look.began + PATIENCE - time.monotonic()))
        found = list(look.found) if look.over else ["the database does not answer"]
        found += self._keys() + self._own()
        self._say(found)
        return found

    def close(self) -> None:
        """Give the connection up; another look takes a new one."""
        with self._lock:
            if self._connection is not None and self._look is not None and self._look.over:
                self._connection.close()
            self._look = None

    def _examine(self, look: "_Look") -> None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(connect_timeout=2, statement_timeout=PATIENCE)
            look.found = _examine_database(self._connection)
        except psycopg.Error:
            look.found = ["the database cannot be reached"]
            if self._connection is not None:
                self._connection.close()
        except Exception:
            log.exception("the database cannot be examined")
        finally:
            look.done.set()

    def _keys(self) -> list[str]:
        try:
            for kind in KINDS:
                self._keyring.ring(kind)
            lacks = self._keyring.missing()
        except KeyringError:
            return ["the keyring cannot be read (caplai doctor says why)"]
        return ["this host lacks keys that are in use (caplai doctor says which)"] if lacks else []

    def _say(self, found: list[str]) -> None:
        """Log that the process is not ready, and that it is again, each once."""
        is_ready = not found
        metrics.ready.set(is_ready)
        with self._lock:
            changed, self._was_ready = is_ready != self._was_ready, is_ready
        if changed and is_ready:
            log.info("ready again")
        elif changed:
            log.error("not ready: %s", "; ".join(found))


class _Look:
    """One look at the database."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.done = threading.Event()
        self.found = ["the database cannot be examined (see the log)"]

    @property
    def over(self) -> bool:
        return self.done.is_set()


def _examine_database(conn: psycopg.Connection) -> list[str]:
    row = conn.execute("select current_setting('transaction_read_only') = 'on'").fetchone()
    if row is None or row[0]:
        return ["the database takes no writes (a standby, or read-only)"]
    try:
        applied = set(conn.execute("select app, name from django_migrations").fetchall())
    except psycopg.errors.UndefinedTable:
        applied = set()
    missing = len(_migrations() - applied)
    return [f"{missing} migrations are missing (run: caplai migrate)"] if missing else []


@cache
def _migrations() -> frozenset[tuple[str, str]]:
    """The last migration of each app; those before it are in whenever it is."""
    from django.db.migrations.loader import MigrationLoader

    return frozenset(MigrationLoader(None).graph.leaf_nodes())


def listener(config: Config, process: str, port: int, health: Health, gauges: Gauges = no_gauges) -> Listener:
    """What lets this process (`engine` or `web`) be seen: its listener on `port`, its traces."""
    metrics.build.labels(__version__, platform.python_version(), process).set(1)
    if config.watch.traces:
        tracing.start(config.watch.traces, f"caplai-{process}")
    return Listener(config.watch.address, port, lambda: asyncio.to_thread(health.problems), gauges)


# --- the web server's ------------------------------------------------------------------------------


def watch_the_web() -> None:
    """Let the web server's process be seen, as long as it lives."""
    config = settings.CAPLAI
    start_in_thread(listener(config, "web", config.watch.web_port, of_the_web()))


@cache
def of_the_web() -> Health:
    """The health of this process, if it is a web server."""
    return Health(settings.KEYRING)


class Probes:
    """Answers /healthz and /readyz before anything else looks at the request: whoever probes knows neither our
    name (ALLOWED_HOSTS) nor HTTPS.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path == "/healthz":
            response: HttpResponse = JsonResponse({"status": "alive"})
        elif request.path == "/readyz":
            found = of_the_web().problems()
            response = JsonResponse(readiness(found), status=503 if found else 200)
            response._has_been_logged = True  # Django would log each 503
        else:
            return self.get_response(request)
        response["Cache-Control"] = "no-store"
        return response
