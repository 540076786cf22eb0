"""A small HTTP server for operators' machines: /healthz, /readyz and /metrics, on an address of its own.

Nothing of it is for the internet; by default it listens on the loopback alone.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from caplai.watch import metrics

log = logging.getLogger(__name__)

Problems = Callable[[], Awaitable[list[str]]]
"""What keeps the process from serving, in plain words; nothing when it is ready."""
Gauges = Callable[[], Awaitable[Iterable[Metric]]]


async def no_gauges() -> Iterable[Metric]:
    return ()


class Listener:
    def __init__(self, address: str, port: int, problems: Problems, gauges: Gauges = no_gauges) -> None:
        """`port` 0 switches it off."""
        self._address, self._port = address, port
        self._problems, self._gauges = problems, gauges
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Listen. A port that cannot be had is a warning: nobody is to go without an answer because of it."""
        await self._runner.setup()
        if not self._port:
            return
        try:
            await web.TCPSite(self._runner, self._address, self._port).start()
        except OSError as error:
            log.warning(
                "cannot listen on %s:%d for probes and metrics: %s", self._address, self._port, error.strerror
            )

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _ready(self, request: web.Request) -> web.Response:
        found = await self._problems()
        return web.json_response(readiness(found), status=503 if found else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        # Both at once, for both may wait; asking for problems sets the metric that tells whether we are ready.
        found, _ = await asyncio.gather(self._gauges(), self._problems())
        body = metrics.render(found)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def readiness(problems: list[str]) -> dict[str, object]:
    """The body of /readyz."""
    return {"status": "not ready" if problems else "ready", "problems": problems}


def start_in_thread(listener: Listener) -> None:
    """Run it beside a server that has no asyncio loop, as long as the process lives."""

    async def forever() -> None:
        await listener.start()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(forever()), name="watch", daemon=True).start()
