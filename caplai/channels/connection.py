"""One TCP connection to an SMSC: carries the session's bytes between the socket and the clock."""

import asyncio
import bisect
import math
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

from caplai.channels.links import Link
from caplai.smpp.pdu import BindKind
from caplai.smpp.session import Event, Role, Session, Timers

LINGER = 2.0
"""Seconds that what is still to be written has when a connection is closed: a peer that reads nothing gets no more."""

ASK_AFTER = 1.0
"""Seconds after which we ask whether our answers were read, if nothing has told it."""


class Connection(asyncio.Protocol):
    """One TCP connection with its session. Hands the session's events to its owner.

    Memory is bounded whatever the peer does: while it does not read what we wrote, we read nothing of what it
    writes and submit nothing; if it goes on, enquire_link finds it silent.
    """

    def __init__(
        self,
        link: Link,
        kind: BindKind,
        on_event: Callable[["Connection", Event], None],
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self.link = link
        self.kind = kind
        self.session = Session(
            Role.ESME,
            window=link.window,
            timers=Timers(
                enquire_link=link.enquire_link,
                response=link.response_timeout,
                bind=link.response_timeout,
                message=link.submit_timeout,
            ),
            now=time.monotonic(),
        )
        self.bound_at: float | None = None
        self.store_session: int | None = None
        self.ended = asyncio.Event()
        self.choked = False
        """The peer does not read what we write."""
        self.aborted = False
        # What was acknowledged: (when we wrote it, its time of arrival in the store), oldest first.
        self.acknowledged: deque[tuple[float, datetime]] = deque()
        self._confirmed: datetime | None = None
        self.doubtful_until = -math.inf
        """Until then something may be delivered again that we stored and did not acknowledge."""
        self._on_event = on_event
        self._on_room = on_room
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._asked = -math.inf

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

    def pause_writing(self) -> None:
        self.choked = True
        assert self._transport
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.choked = False
        assert self._transport
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._on_room()

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
        """Close it once what is written is on its way, and anyhow after LINGER seconds."""
        if self._transport and not self._transport.is_closing():
            self._transport.close()
            asyncio.get_running_loop().call_later(LINGER, self._transport.abort)

    def certificate(self) -> dict[str, Any] | None:
        """The peer's certificate as the ssl module tells it: None without TLS, empty if it was not checked."""
        tls = self._transport.get_extra_info("ssl_object") if self._transport else None
        return tls and tls.getpeercert()

    def abort(self) -> None:
        """End it now: what was received and not handled yet is dropped, what is to be written, too."""
        self.aborted = True
        if self._transport:
            self._transport.abort()

    def unbind(self) -> None:
        if self.bound_at is not None and not self.session.closed:
            self.session.unbind(time.monotonic())
            self.flush()
        else:
            self.close()

    def confirmed(self) -> datetime | None:
        """The latest time of arrival up to which all acknowledgements are known to have reached the SMSC, None before
        there is one. It stands still while a message is doubtful: that one had no acknowledgement.
        """
        reached = self.session.confirmed_at
        if reached is not None and time.monotonic() >= self.doubtful_until:
            while self.acknowledged and self.acknowledged[0][0] < reached:
                self._confirmed = self.acknowledged.popleft()[1]
        return self._confirmed

    def ask_whether_read(self) -> None:
        """Ask for a sign of life, once, where nothing else has proved that the SMSC has read our answers.

        As a rule its answers to what we submit do; on a receiver's bind there are none.
        """
        if not self.session.bound or self.choked:
            return
        now, read = time.monotonic(), self.session.confirmed_at
        # While a message is doubtful, what was read stays among them: many, on a busy link.
        unread = 0 if read is None else bisect.bisect_left(self.acknowledged, read, key=lambda one: one[0])
        if unread == len(self.acknowledged):
            return
        oldest = self.acknowledged[unread][0]
        if now - oldest > ASK_AFTER and self._asked <= oldest:
            self._asked = now
            self.session.enquire(now)
            self.flush()

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
