"""The SMPP 3.4 wire, sans-IO: bytes in, events out, for either side of a connection.

Must not know: asyncio, sockets, the clock (`now` is passed in), settings, Django, nor what a message means.
Invariant: whatever bytes the peer sends, nothing raises, nothing hangs, and every request of ours comes
back exactly once: answered, or lost.
"""
