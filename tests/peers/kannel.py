"""Debian's Kannel (bearerbox and smsbox) as an ESME and as an aggregator, driven from a test."""

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from tests.ports import free_port

WAIT = 15.0
"""Seconds for anything to happen: a limit, no expectation."""

PATH = os.environ.get("PATH", "") + ":/usr/sbin"  # where Debian puts it, and only root looks
needs_kannel = pytest.mark.skipif(
    not all(shutil.which(box, path=PATH) for box in ("bearerbox", "smsbox")),
    reason="needs Kannel: apt-get install kannel",
)

FAKESMSC = Path("/usr/lib/kannel/test/fakesmsc")
"""Of kannel-extras: a carrier of the simplest kind, and its phones."""

# A blank line ends a group; a comment or a key after it would belong to none.
CONFIGURATION = """
group = core
admin-port = {admin}
admin-interface = 127.0.0.1
admin-password = test
smsbox-port = {boxes}
smsbox-interface = 127.0.0.1
box-allow-ip = 127.0.0.1
{core}

{binds}
group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {sendsms}
sendsms-interface = 127.0.0.1
http-request-retry = 60
http-queue-delay = 1

group = sms-service
{service}

group = sendsms-user
username = test
password = test
max-messages = 9
concatenation = true
"""

# Of a pair, each bind is a group; they share the smsc-id, so that an answer may leave by the other.
BIND = """
group = smsc
smsc = smpp
smsc-id = simulator
host = 127.0.0.1
{which}
smsc-username = caplai
smsc-password = {password}
system-type = ""
enquire-link-interval = 1
reconnect-delay = 1
"""

REPLY = """keyword = bh
catch-all = true
text = "{reply}"
max-messages = 9
concatenation = true"""

FAKE = """
group = smsc
smsc = fake
smsc-id = fake
port = {port}
connect-allow-ip = 127.0.0.1
"""

_GOING = re.compile(r"\[(\d+)\] DEBUG: SMPP\[simulator\]: (Got|Sending) ")
_WHAT = re.compile(r"\[(\d+)\] DEBUG: +type_name: (\w+)")


class Kannel:
    """`async with Kannel(folder, port) as kannel:` both boxes, connected to the SMSC on `port`.

    It answers whatever begins with BH by `reply`, where `%a` is the text it was sent (percent-encoded), or does
    as the lines of `service` say. `pair` makes it bind as a transmitter and a receiver; `fake` makes `port` that of
    Kannel's own fake SMSC. `core` are lines for the group of that name.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        reply: str = "",
        service: str = "",
        core: str = "",
        password: str = "secret",
        pair: bool = False,
        fake: bool = False,
    ) -> None:
        admin, boxes, self._sendsms = free_ports(3)
        self._boxes = boxes
        self.sendsms_url = f"http://127.0.0.1:{self._sendsms}/cgi-bin/sendsms"
        pairs = [f"port = {port}", f"receive-port = {port}"]
        which = pairs if pair else [f"port = {port}\ntransceiver-mode = true"]
        binds = "".join(BIND.format(which=each, password=password) for each in which)
        if fake:
            binds = FAKE.format(port=port)
        self._file = folder / "kannel.conf"
        self._file.write_text(
            CONFIGURATION.format(
                admin=admin,
                boxes=boxes,
                sendsms=self._sendsms,
                binds=binds,
                core=core,
                service=service or REPLY.format(reply=reply),
            )
        )
        self.log: list[str] = []
        self._going: dict[str, str] = {}
        self._pdus: set[tuple[str, str]] = set()
        self._news = asyncio.Event()
        self._processes: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Kannel":
        try:
            await self._start("bearerbox")
            async with asyncio.timeout(WAIT):
                while not await _listens(self._boxes):  # an smsbox that finds none gives up
                    assert self._processes[0].returncode is None, "\n".join(self.log)
                    await asyncio.sleep(0.05)
            await self._start("smsbox")
            await self.said("Connected to bearerbox")
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._stop()

    async def said(self, *words: str) -> None:
        """Wait for a line with all these words in either box's log."""
        await self._until(lambda: any(all(word in line for word in words) for line in self.log))

    async def exchanged(self, direction: str, command: str) -> None:
        """Wait until bearerbox has written ("Sending") or read ("Got") such a PDU, by its own log."""
        await self._until(lambda: (direction, command) in self._pdus)

    def complaints(self) -> list[str]:
        """What Kannel found wrong with what it was sent over SMPP."""
        wrong = ("WARNING", "ERROR", "PANIC")
        return [line for line in self.log if "SMPP" in line and any(word in line for word in wrong)]

    async def send(self, to: str, text: str, **options: Any) -> None:
        """Send a text, as an application of Kannel's does, by its HTTP interface."""
        query = urlencode({"username": "test", "password": "test", "to": to, "text": text, **options})
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{self.sendsms_url}?{query}") as answer,
        ):
            assert answer.status == 202, await answer.text()

    async def _until(self, happened: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(WAIT):
                while not happened():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError("\n".join(["It came to nothing; Kannel said:", *self.log])) from None

    async def _start(self, box: str) -> None:
        program = shutil.which(box, path=PATH)
        assert program
        process = await asyncio.create_subprocess_exec(
            *(program, "-v", "0", str(self._file)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._processes.append(process)
        self._readers.append(asyncio.create_task(self._read(process)))

    async def _stop(self) -> None:
        """The smsbox first: bearerbox then has nobody to wait for."""
        for process in reversed(self._processes):
            if process.returncode is None:
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), WAIT)
            except TimeoutError:
                process.kill()
        await asyncio.gather(*self._readers)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout
        while line := await process.stdout.readline():
            self._note(line.decode(errors="replace").rstrip())
            self._news.set()

    def _note(self, line: str) -> None:
        """Keep a line of a log. A PDU is several: where it goes, then what it is, by the same thread."""
        self.log.append(line)
        if going := _GOING.search(line):
            self._going[going[1]] = going[2]
        elif (what := _WHAT.search(line)) and what[1] in self._going:
            self._pdus.add((self._going.pop(what[1]), what[2]))


class Fakesmsc:
    """`async with Fakesmsc(port) as carrier:` Kannel's fakesmsc, connected to a bearerbox's fake SMSC."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.got: list[str] = []
        self._sent = 0
        self._news = asyncio.Condition()

    async def __aenter__(self) -> "Fakesmsc":
        self._process = await asyncio.create_subprocess_exec(
            *(str(FAKESMSC), "-H", "127.0.0.1", "-r", str(self._port)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: Any) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def send(self, line: str) -> None:
        """A message from a phone: `FROM TO text …`, `FROM TO data …` or `FROM TO udh UDH …`, percent-encoded."""
        assert self._process.stdin
        sent = self._sent
        self._process.stdin.write(line.encode() + b"\n")
        # Lines that come together would stay in its buffer.
        await self._until(lambda: self._sent > sent)

    async def replies(self, count: int) -> list[str]:
        """Wait for so many messages to phones; all of them, as `FROM TO text …`."""
        await self._until(lambda: len(self.got) >= count)
        return self.got

    async def _until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT), self._news:
            await self._news.wait_for(happened)

    async def _read(self) -> None:
        assert self._process.stderr
        while line := (await self._process.stderr.readline()).decode(errors="replace"):
            async with self._news:
                if found := re.search(r"Got message \d+: <(.*)>", line):
                    self.got.append(found[1])
                self._sent += "fakesmsc: sent message" in line
                self._news.notify_all()


def free_ports(count: int) -> list[int]:
    """Kannel takes no port 0."""
    return [free_port() for _ in range(count)]


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
