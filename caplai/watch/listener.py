"""A small HTTP server for operators' machines: /healthz, /readyz and /metrics, on an address of its own.

Nothing of it is for the internet; by default it listens on the loopback alone.
"""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from caplai.watch import metrics

log = logging.getLogger(__name__)

Problems = Callable[[], Awaitable[list[str]]]
"""What keeps the process from serving, in plain words; nothing when it is ready."""
Gauges = Callable[[], Awaitable[Iterable[Metric]]]

_Page = tuple[HTTPStatus, str, bytes]
_TEXT, _JSON = "text/plain; charset=utf-8", "application/json; charset=utf-8"
_PATIENCE = 30.0
"""Seconds for a request and its answer."""


async def no_gauges() -> Iterable[Metric]:
    return ()


class Listener:
    """HTTP/1.1, an answer for each connection. On streams alone: aiohttp would take 9 MB of a web server's memory."""

    def __init__(self, address: str, port: int, problems: Problems, gauges: Gauges = no_gauges) -> None:
        """`port` 0 switches it off."""
        self._address, self._port = address, port
        self._problems, self._gauges = problems, gauges
        self._server: asyncio.Server | None = None
        self._pages = {"/healthz": self._health, "/readyz": self._ready, "/metrics": self._metrics}

    async def start(self) -> None:
        """Listen. A port that cannot be had is a warning: nobody is to go without an answer because of it."""
        if not self._port:
            return
        try:
            self._server = await asyncio.start_server(self._answer, self._address, self._port)
        except OSError as error:
            log.warning(
                "cannot listen on %s:%d for probes and metrics: %s", self._address, self._port, error.strerror
            )

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        with contextlib.closing(writer), contextlib.suppress(*gone):
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._page(head.partition(b"\r\n")[0].decode("latin-1")))
                await writer.drain()

    async def _page(self, line: str) -> bytes:
        """The answer to a request with this first line."""
        method, _, rest = line.partition(" ")
        page = self._pages.get(rest.partition(" ")[0].partition("?")[0])
        if page is None:
            status, kind, body = HTTPStatus.NOT_FOUND, _TEXT, b"404: Not Found"
        elif method not in ("GET", "HEAD"):
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"405: Method Not Allowed"
        else:
            status, kind, body = await page()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else body)

    async def _health(self) -> _Page:
        return HTTPStatus.OK, _JSON, json.dumps({"status": "alive"}).encode()

    async def _ready(self) -> _Page:
        found = await self._problems()
        status = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
        return status, _JSON, json.dumps(readiness(found)).encode()

    async def _metrics(self) -> _Page:
        # Both at once, for both may wait; asking for problems sets the metric that tells whether we are ready.
        found, _ = await asyncio.gather(self._gauges(), self._problems())
        return HTTPStatus.OK, CONTENT_TYPE_LATEST, metrics.render(found)


def readiness(problems: list[str]) -> dict[str, object]:
    """The body of /readyz."""
    return {"status": "not ready" if problems else "ready", "problems": problems}


def start_in_thread(listener: Listener) -> None:
    """Run it beside a server that has no asyncio loop, as long as the process lives."""

    async def forever() -> None:
        await listener.start()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(forever()), name="watch", daemon=True).start()
