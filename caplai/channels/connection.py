"""One TCP connection to an SMSC: carries the session's bytes between the socket and the clock."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

from caplai.channels.links import Link
from caplai.smpp.pdu import BindKind
from caplai.smpp.session import Event, Role, Session, Timers


class Connection(asyncio.Protocol):
    """One TCP connection with its session. Hands the session's events to its owner."""

    def __init__(self, link: Link, kind: BindKind, on_event: Callable[["Connection", Event], None]) -> None:
        self.link = link
        self.kind = kind
        self.session = Session(
            Role.ESME,
            window=link.window,
            timers=Timers(enquire_link=link.enquire_link, response=link.response_timeout),
            now=time.monotonic(),
        )
        self.bound_at: float | None = None
        self.store_session: int | None = None
        self.ended = asyncio.Event()
        # What was acknowledged: (when we wrote it, its time of arrival in the store), oldest first.
        self.acknowledged: deque[tuple[float, datetime]] = deque()
        self._on_event = on_event
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        link = self.link
        self.session.bind(
            self.kind,
            system_id=link.system_id,
            password=link.password.get_secret_value(),
            system_type=link.system_type,
            now=time.monotonic(),
        )
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._handle(self.session.receive(data, time.monotonic()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._handle(self.session.closed_by_peer(time.monotonic()))
        if self._timer:
            self._timer.cancel()
        self.ended.set()

    def flush(self) -> None:
        """Write what the session has to say, and set the clock to its next deadline."""
        data = self.session.data_to_send()
        if data and self._transport and not self._transport.is_closing():
            self._transport.write(data)
        deadline = self.session.next_deadline()
        if deadline is not None and (self._timer is None or self._timer.when() > self._when(deadline)):
            if self._timer:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(self._when(deadline), self._tick)

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop, together with what else comes up in it."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = False
        self.flush()

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def unbind(self) -> None:
        if self.bound_at is not None and not self.session.closed:
            self.session.unbind(time.monotonic())
            self.flush()
        else:
            self.close()

    def confirmed(self) -> datetime | None:
        """The latest time of arrival whose acknowledgement is known to have reached the SMSC."""
        latest = None
        while self.acknowledged and self.session.confirmed_at is not None:
            if self.acknowledged[0][0] >= self.session.confirmed_at:
                break
            latest = self.acknowledged.popleft()[1]
        return latest

    def _when(self, deadline: float) -> float:
        return asyncio.get_running_loop().time() + max(0.0, deadline - time.monotonic())

    def _tick(self) -> None:
        self._timer = None
        self._handle(self.session.tick(time.monotonic()))

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            self._on_event(self, event)
        self.flush()
        if self.session.closed:
            self.close()
