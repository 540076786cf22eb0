"""A network of bytes: what is written comes in order, in other pieces, later, in part, or not at all."""

import asyncio
import contextvars
import random
from collections.abc import Callable


class End(asyncio.Transport):
    """One end of a connection, as asyncio's protocols see it."""

    def __init__(self, wire: "Wire", context: contextvars.Context) -> None:
        super().__init__()
        self.context = context
        """The process that it belongs to: its protocol is called there."""
        self.wire = wire
        self.protocol: asyncio.Protocol
        self.peer: End
        self.gone = False
        """connection_lost was called, or is about to be."""
        self.closing = False
        self._arriving: list[tuple[float, bytes]] = []
        self._timer: asyncio.TimerHandle | None = None

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data) -> None:
        if not self.closing and not self.wire.broken:
            self.peer.arrive(bytes(data))

    def close(self) -> None:
        """What was written still arrives, and then the end."""
        if not self.closing:
            self.closing = True
            self.wire.loop.call_soon(self.lose, context=self.context)
            if not self.wire.broken:
                self.peer.arrive(b"")

    abort = close

    def arrive(self, data: bytes) -> None:
        """Bytes on their way to this end; empty for the end of the stream."""
        wire, loop = self.wire, self.wire.loop
        at = loop.time() + wire.delay()
        pieces = [data]
        if len(data) > 1 and wire.draw.random() < wire.splits:
            cut = wire.draw.randrange(1, len(data))
            pieces = [data[:cut], data[cut:]]
        for piece in pieces:
            if self._arriving:
                at = max(at, self._arriving[-1][0])
            self._arriving.append((max(at, wire.stalled_until), piece))
            at += wire.delay()
        self._wait()

    def _wait(self) -> None:
        if self._timer is None and self._arriving:
            self._timer = self.wire.loop.call_at(self._arriving[0][0], self._deliver, context=self.context)

    def _deliver(self) -> None:
        self._timer = None
        now = self.wire.loop.time() + 1e-6
        due = [data for at, data in self._arriving if at <= now]
        self._arriving = self._arriving[len(due) :]
        ended = b"" in due
        data = b"".join(due)
        if not self.closing:
            if data:
                self.protocol.data_received(data)
            if ended:
                self.close()
        self._wait()

    def cut_short(self) -> None:
        """Of what is on its way only the beginning arrives, up to any byte."""
        whole = b"".join(data for _, data in self._arriving)
        self._arriving = []
        if whole:
            left = whole[: self.wire.draw.randrange(len(whole))]
            self.wire.loop.call_soon(self._receive, left, context=self.context)

    def _receive(self, data: bytes) -> None:
        if not self.closing:
            self.protocol.data_received(data)

    def lose(self) -> None:
        if not self.gone:
            self.gone = self.closing = True
            if self._timer:
                self._timer.cancel()
            self.protocol.connection_lost(None)


class Wire:
    """One TCP connection between a client and a server."""

    def __init__(self, network: "Network", owner: object) -> None:
        self.loop, self.draw, self.owner = network.loop, network.draw, owner
        self.delay, self.splits = network.delay, network.splits
        self.client, self.server = End(self, contextvars.copy_context()), End(self, network.context)
        self.client.peer, self.server.peer = self.server, self.client
        self.broken = False
        self.stalled_until = 0.0

    @property
    def ended(self) -> bool:
        return self.client.gone and self.server.gone

    def cut(self, *, notice: tuple[float | None, float | None]) -> None:
        """Break it; client and server notice after so many seconds, or never (half open)."""
        if self.broken:
            return
        self.broken = True
        for end, seconds in zip((self.client, self.server), notice, strict=True):
            end.cut_short()
            if seconds is not None:
                self.loop.call_later(seconds, end.lose, context=end.context)

    def stall(self, seconds: float) -> None:
        self.stalled_until = self.loop.time() + seconds


class Network:
    """Connections to one server. `answer() -> protocol` is the server's; `refuses` while nobody listens."""

    def __init__(self, loop, draw: random.Random, answer: Callable[[], asyncio.Protocol]) -> None:
        self.loop, self.draw, self.answer = loop, draw, answer
        self.context = contextvars.copy_context()
        self.wires: list[Wire] = []
        self.refuses = False
        self.slow = 0.001
        self.splits = draw.choice([0.0, 0.1, 0.6])

    def delay(self) -> float:
        return self.draw.random() * self.slow

    async def connect(self, owner: object, factory: Callable[[], asyncio.Protocol]):
        """As `loop.create_connection`, for the engine `owner`."""
        await asyncio.sleep(0.001 + self.delay())
        if self.refuses:
            raise ConnectionRefusedError
        wire = Wire(self, owner)
        self.wires = [*(wire for wire in self.wires if not wire.ended), wire]
        wire.client.protocol, wire.server.protocol = factory(), self.answer()
        self.context.run(wire.server.protocol.connection_made, wire.server)
        wire.client.protocol.connection_made(wire.client)
        return wire.client, wire.client.protocol
