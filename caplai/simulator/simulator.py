"""The whole simulator: SMSC, phones, citizens and page, started and stopped together."""

import asyncio
import signal
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from aiohttp import web

from caplai.simulator.citizens import Citizens, read_citizens
from caplai.simulator.page import Page
from caplai.simulator.panel import Panel
from caplai.simulator.phones import Message, Phones, read_number
from caplai.simulator.scenarios import Scenarios
from caplai.simulator.smsc import Rules, Smsc


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """Where to listen (port 0: any free one), whom to let bind, and what the phones are like.

    `price` is in đồng for each message that arrived. `citizens_file` is a JSON list of {"name", "phone",
    "code"}. `keyword` and `command` are the words that the page puts before a code. `rules` are the carrier's
    own: its patience, its windows, its message ids. `scenarios` are what it does wrong from the start, each
    `NAME` or `NAME=VALUE`. With `tls_cert` (and `tls_key`, unless the same file holds it) ESMEs come by TLS.
    """

    smpp_host: str = "127.0.0.1"
    smpp_port: int = 0
    http_host: str = "127.0.0.1"
    http_port: int = 0
    system_id: str = "caplai"
    password: str = field(default="secret", repr=False)
    short_code: str = "8079"
    keyword: str = "BH"
    command: str = "MK"
    price: int = 1000
    citizens_file: Path | None = None
    rules: Rules = field(default_factory=Rules)
    scenarios: Sequence[str] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None


class Simulator:
    """`async with Simulator(config) as simulator:` listens inside, and has let go of everything after.

    Raises OSError if a port is taken and ValueError if a scenario, the citizens' file or the certificate
    cannot be understood.
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()
        self.phones = Phones(self.config.price)
        self.scenarios = Scenarios(self.config.scenarios)
        self.smsc = Smsc(
            self.phones,
            system_id=self.config.system_id,
            password=self.config.password,
            rules=self.config.rules,
            scenarios=self.scenarios,
        )
        self.smpp_port = 0
        self.http_port = 0
        self._runner: web.AppRunner | None = None

    @property
    def http_url(self) -> str:
        """The address of the virtual phones, as a browser takes it."""
        host = self.config.http_host
        if host in ("0.0.0.0", "::"):  # noqa: S104  (everywhere is no address to go to)
            host = "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.http_port}/"

    async def __aenter__(self) -> "Simulator":
        config = self.config
        citizens = read_citizens(config.citizens_file) if config.citizens_file else Citizens()
        tls = _tls(config.tls_cert, config.tls_key) if config.tls_cert else None
        try:
            self.smpp_port = await self.smsc.start(config.smpp_host, config.smpp_port, tls)
            page = Page(
                self.phones,
                citizens,
                self.smsc.send_mo,
                Panel(self.scenarios, lambda: self.smsc.bound, self.smsc.cut),
                short_code=config.short_code,
                words=f"{config.keyword} {config.command}",
                host=config.http_host,
                clock=time.time,
            )
            self._runner = web.AppRunner(page.application(), access_log=None, shutdown_timeout=1.0)
            await self._runner.setup()
            site = web.TCPSite(self._runner, config.http_host, config.http_port)
            await site.start()
            self.http_port = self._runner.addresses[0][1]
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self.smsc.stop()

    async def send(self, phone: str, text: str) -> Message:
        """The phone (`0327…` or `+84327…`) texts the short code; returns at once, in state `sending`.

        Raises ValueError for what is no phone number.
        """
        return self.smsc.send_mo(_msisdn(phone), self.config.short_code, text)

    async def reply(self, phone: str, *, after: Message | int = 0, timeout: float = 10.0) -> Message:
        """The first text that the phone received after that message, waiting for it if need be.

        Raises TimeoutError after `timeout` seconds.
        """
        last = after.id if isinstance(after, Message) else after
        return await self.phones.wait_for_reply(_msisdn(phone), after=last, timeout=timeout)


async def run(config: SimulatorConfig, ready: Callable[[Simulator], None] | None = None) -> None:
    """Run until SIGTERM, SIGINT or cancellation; `ready` is called once both ports are open."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        async with Simulator(config) as simulator:
            if ready is not None:
                ready(simulator)
            await stop.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _msisdn(phone: str) -> str:
    msisdn = read_number(phone)
    if msisdn is None:
        raise ValueError("this is no phone number")
    return msisdn


def _tls(cert: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password="")  # never asks for one
    except OSError:  # which ssl.SSLError is, too
        raise ValueError(f"{cert}: not a certificate in PEM, or not with its key") from None
    return context
