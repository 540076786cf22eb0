"""A process says that it lives and which keys it can read, and obeys what all agreed on (keys.py)."""

import contextlib
import logging
import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import psycopg

from caplai.service import keys as agreement
from caplai.service.keys import Overview
from caplai.store.db import connect
from caplai.store.keyring import Agreed, KeyringError, Keys, Token

log = logging.getLogger(__name__)

_STEP = 5.0
"""Seconds by which the database's clock may differ from ours since we last asked, before we call it a step."""
_LOOK = 1.0
"""Seconds between looks at the keyring, and between attempts while the database is away."""
_DESTROY = 60.0
"""Seconds between looks for keys that nothing needs any more."""
_UNHEARD = Agreed({}, frozenset({Token("any", "key", "until the database has been asked")}))


class Presence:
    """The beat of one engine or web server, in a thread of its own.

    `keys` is told what is agreed (`Keys.obey`), `heed` called whenever what can be read, or what is active, may
    have changed, before any other process can rely on it. Until the database was heard `keys` misses a key.
    `lead`: how long a new key waits at least; `silence`: who says nothing for so long has ended, and we speak
    several times as often. With `session_age` it also decides, now and then, which keys are destroyed.
    """

    def __init__(
        self,
        kind: str,
        version: str,
        keys: Keys,
        *,
        lead: timedelta,
        silence: timedelta,
        heed: Callable[[], None] = lambda: None,
        session_age: timedelta | None = None,
    ) -> None:
        # Containers may share a host name and a process id.
        self.name = f"{os.uname().nodename}:{os.getpid()}:{secrets.token_hex(4)}"
        self._kind, self._version, self._keys, self._heed = kind, version, keys, heed
        self._lead, self._silence, self._session_age = lead, silence, session_age
        self._beat = silence.total_seconds() / 4.5
        self._connection: psycopg.Connection | None = None
        self._next = 0.0
        self._readable: frozenset[Token] | None = None
        self._heard: tuple[datetime, float] | None = None
        self._steady_since = 0.0
        self._active: Mapping[str, str] = {}
        self._standing: frozenset[str] = frozenset()
        self._ending = threading.Event()
        self._waker = os.pipe()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Say and hear once, if the database is there; go on in the background."""
        self._keys.obey(_UNHEARD)
        self._tick()
        self._spawn(self._go_on)
        if self._session_age is not None:
            self._spawn(self._destroy, self._session_age)

    def stop(self) -> None:
        """Say that we end. Once."""
        self._ending.set()
        os.write(self._waker[1], b".")
        for thread in self._threads:
            thread.join(5.0)
        with contextlib.suppress(psycopg.Error):  # then our silence says it
            if self._connection is not None:
                agreement.goodbye(self._connection, self.name)
        self._disconnect()
        if not any(thread.is_alive() for thread in self._threads):
            for end in self._waker:
                os.close(end)

    def _spawn(self, work: Callable[..., None], *arguments: timedelta) -> None:
        thread = threading.Thread(target=work, args=arguments, name=f"keys {work.__name__}", daemon=True)
        thread.start()
        self._threads.append(thread)

    # --- the beat ---

    def _go_on(self) -> None:
        while not self._ending.is_set():
            self._wait()
            if not self._ending.is_set():
                self._tick()

    def _tick(self) -> None:
        """Speak if it is time to, or if our keys have changed. Never raises: a beat that fails comes again."""
        try:
            broken, readable = "", frozenset[Token]()
            try:
                readable = self._keys.readable()
                self._obey()  # before anybody hears that we can read them
            except (KeyringError, OSError) as error:
                broken = f"keys: none can be read here. {error}"
            if readable != self._readable or time.monotonic() >= self._next:
                self._speak(readable, broken)
        except psycopg.Error:
            self._disconnect()
        except Exception as error:
            self._disconnect()
            self._complain({f"keys: the beat failed ({type(error).__name__}); it is tried again"})

    def _speak(self, readable: frozenset[Token], broken: str) -> None:
        conn = self._connect()
        self._readable = None  # until it is said
        overview = agreement.say(conn, self.name, self._kind, self._version, readable, self._silence)
        self._readable = readable
        self._judge_the_clock(overview.now)
        steady = time.monotonic() - self._steady_since >= self._silence.total_seconds()
        if not broken and agreement.is_due(overview, readable, activate=steady):
            overview = agreement.agree(conn, self._keys, self._lead, self._silence, activate=steady)
        agreed = overview.agreed()
        self._keys.obey(agreed)
        if not broken:
            self._obey()
            if not agreed.needed - readable:
                with contextlib.suppress(KeyringError, OSError):
                    self._keys.note(agreed.active)
        for kind, key in agreed.active.items():
            if self._active.get(kind, key) != key:
                log.info("keys: the active %s key is now %s", kind, key)
        self._active = agreed.active
        self._complain({broken} - {""} or self._faults(overview, readable) | self._remove(overview, readable))
        due = [
            (key.not_before - overview.now).total_seconds() for key in overview.keys if key.state == "waiting"
        ]
        self._next = time.monotonic() + min([self._beat, *(wait for wait in due if wait > 0)])

    def _obey(self) -> None:
        with contextlib.suppress(KeyringError):  # a keyring of other keys: what it lacks is said
            self._heed()

    def _judge_the_clock(self, now: datetime) -> None:
        """Who looks dead by a clock that has just stepped, or after a time without database, may only not have
        had its turn: then, as at our start, nobody is counted out until all had time to speak.
        """
        mine = time.monotonic()
        if self._heard is None:
            self._steady_since = mine
        else:
            passed = mine - self._heard[1]
            step = abs((now - self._heard[0]).total_seconds() - passed)
            if step > _STEP or passed > self._silence.total_seconds() / 2:
                self._steady_since = mine
        self._heard = (now, mine)

    def _wait(self) -> None:
        """Until something about keys has changed, or it is time to look."""
        connection, seconds = self._connection, min(_LOOK, self._beat)
        watched = select.poll()  # not select(), which takes no descriptor above 1023: a web server has many
        watched.register(self._waker[0], select.POLLIN)
        try:
            if connection is not None:
                watched.register(connection.fileno(), select.POLLIN)
            watched.poll(1000 * max(0.0, min(seconds, self._next - time.monotonic())))
            if connection is not None:
                for _ in connection.notifies(timeout=0):
                    self._next = 0.0
        except psycopg.Error:
            self._disconnect()
        if self._connection is None:
            self._ending.wait(seconds)

    def _connect(self) -> psycopg.Connection:
        if self._connection is None:
            connection = connect(connect_timeout=3, statement_timeout=5.0)
            # We hold the lock that all beats take: the server must notice soon if we are gone in mid-transaction.
            connection.execute("set idle_in_transaction_session_timeout = '5s'")
            connection.execute(f"listen {agreement.CHANNEL}")
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    # --- what is wrong, and what goes ---

    def _faults(self, overview: Overview, readable: frozenset[Token]) -> set[str]:
        place = self._keys.place
        faults = {
            f"keys: this host lacks the {one.kind} key {one.id}, which is in use. Until it has it, it signs"
            f" nobody in and its links stay closed. Bring {place} up to date from a host that has the key."
            for one in overview.agreed().needed - readable
        }
        for key in overview.keys:
            if key.state == "waiting" and key.token not in readable:
                faults.add(
                    f"keys: the new {key.kind} key {key.id} waits for this host. Bring {place} up to date."
                )
        return faults

    def _remove(self, overview: Overview, readable: frozenset[Token]) -> set[str]:
        """Remove destroyed keys from the keyring; returns what the operator has to do instead."""
        gone = {key.token for key in overview.keys if key.state == "destroyed"} & readable
        if gone and self._keys.writable:
            with contextlib.suppress(KeyringError, OSError):
                self._keys.remove(gone)
                gone = gone & self._keys.readable()
        return {
            f"keys: nothing needs the {one.kind} key {one.id} any more. Remove it from {self._keys.place}."
            for one in gone
        }

    def _complain(self, faults: set[str]) -> None:
        """Say each once; and once that none is left."""
        for fault in sorted(faults - self._standing):
            log.error("%s", fault)
        if self._standing and not faults:
            log.info("keys: all is well again")
        self._standing = frozenset(faults)

    def _destroy(self, session_age: timedelta) -> None:
        """Decide which keys nothing needs any more; on a connection of its own, for that takes its time."""
        while not self._ending.is_set():
            try:
                with connect(connect_timeout=3, statement_timeout=300.0) as conn:
                    for one in agreement.end_unneeded(conn, session_age):
                        log.info(
                            "keys: nothing needs the %s key %s any more; it is destroyed", one.kind, one.id
                        )
            except psycopg.Error as error:
                log.warning("keys: cannot look for keys that nothing needs (%s)", type(error).__name__)
            self._ending.wait(_DESTROY)
