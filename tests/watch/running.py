"""Real `caplai engine` and `caplai web` processes on the test database, behind a door that a test can shut."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager, suppress

from django.conf import settings
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from caplai.store.db import conninfo
from tests.ports import free_port


class DatabaseDoor:
    """A TCP door to the test database. `shut()`: connections are cut and refused, as by a server that stopped;
    `hang()`: they stay, and nothing comes through; `open()`: all is well again.
    """

    def __init__(self):
        parts = conninfo_to_dict(conninfo())
        self._host, self._port = parts["host"], parts.get("port", 5432)
        self.port = free_port()
        self.conninfo = make_conninfo(
            **{**parts, "host": "127.0.0.1", "port": self.port, "sslmode": "disable"}
        )
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers = set()
        self._server = None

    @property
    def url(self):
        parts = conninfo_to_dict(self.conninfo)
        return f"postgresql://{parts['user']}:{parts.get('password', '')}@127.0.0.1:{self.port}/{parts['dbname']}"

    async def open(self):
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def hang(self):
        self._flows.clear()

    async def shut(self):
        self._server.close()
        self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader, writer):
        if self._host.startswith("/"):
            path = f"{self._host}/.s.PGSQL.{self._port}"
            behind = await asyncio.open_unix_connection(path)
        else:
            behind = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, behind[1]}
        await asyncio.gather(self._pump(reader, behind[1]), self._pump(behind[0], writer))
        self._writers -= {writer, behind[1]}

    async def _pump(self, reader, writer):
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


class Process:
    """`caplai NAME`, what it logs, and its addresses."""

    def __init__(self, name, folder, environment, **variables):
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        ports = {"engine": "ENGINE_PORT", "web": "WEB_PORT"}
        self.watch = free_port()
        self.port = free_port()
        own = {f"CAPLAI_WATCH__{ports[name]}": str(self.watch), "CAPLAI_PORT": str(self.port)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "caplai", name],
                env=environment | own | variables,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def lines(self):
        """What it logged, each line read as JSON."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]

    async def get(self, path, *, port=None, headers=None):
        """(status, body, headers)."""
        return await asyncio.to_thread(fetch, f"http://127.0.0.1:{port or self.watch}{path}", headers)

    async def ready(self, wanted=True, *, port=None, seconds=40.0):
        """Wait until /readyz says so; returns its body and how long it took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            with suppress(OSError):
                status, body, _ = await self.get("/readyz", port=port)
                if (status == 200) is wanted:
                    return json.loads(body), time.monotonic() - began
            assert self.process.poll() is None, self.log.read_text()
            await asyncio.sleep(0.1)
        raise AssertionError(f"/readyz did not say {wanted}: {self.log.read_text()}")

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def fetch(url, headers=None):
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode(), answer.headers


@asynccontextmanager
async def running(folder, *names, smpp_port=None, **variables):
    """The door to the database, and these processes behind it."""
    door = DatabaseDoor()
    await door.open()
    links = [
        {"name": "viettel", "host": "127.0.0.1", "port": smpp_port, "password": "secret", "receipts": True}
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")},
        "CAPLAI_DATABASE_URL": door.url,
        "CAPLAI_DATA_DIR": str(settings.CAPLAI.data_dir),
        "CAPLAI_LINKS": json.dumps(links if smpp_port else []),
    }
    processes = [Process(name, folder, environment, **variables) for name in names]
    try:
        yield door, *processes
    finally:
        await door.open()
        await asyncio.to_thread(lambda: [process.end() for process in processes])
        with suppress(AttributeError):
            await door.shut()
