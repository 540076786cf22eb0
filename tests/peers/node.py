"""The npm package `smpp`, driven from a test: npm_smpp.js in a child process, JSON lines both ways."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
WAIT = 10.0
"""Seconds for anything to happen: a limit, no expectation."""

needs_npm = pytest.mark.skipif(
    shutil.which("node") is None or not (FOLDER / "node_modules" / "smpp").is_dir(),
    reason="needs Node.js and the npm package smpp: (cd tests/peers && npm ci)",
)


class Node:
    """`async with Node() as node:` a fresh process; what it reports is kept until somebody asks for it."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._events: list[dict[str, Any]] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> "Node":
        self._process = await asyncio.create_subprocess_exec(
            "node",
            "npm_smpp.js",
            cwd=FOLDER,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, kind: Any, *_: Any) -> None:
        assert self._process.stdin
        self._process.stdin.close()  # it leaves at the end of its input
        await asyncio.wait_for(self._process.wait(), WAIT)
        await self._reading
        assert kind is not None or not self.errors, f"npm smpp complains: {self.errors}"

    async def listen(self) -> int:
        """Be an SMSC; returns its port."""
        self.do("listen")
        return (await self.event("listening"))["port"]

    async def connect(self, port: int) -> int:
        """Be an ESME of the SMSC there, not bound yet; returns the session's number."""
        self.do("connect", port=port)
        return (await self.event("session"))["session"]

    def do(self, what: str, **values: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": what, **values}).encode() + b"\n")

    async def send(self, session: int, command: str, **fields: Any) -> dict[str, Any]:
        """Write a PDU; returns it as npm encoded it. Its response is an event of its own."""
        self.do("send", session=session, command=command, fields=fields)
        return (await self.event("sent", session=session))["pdu"]

    async def ask(self, session: int, command: str, **fields: Any) -> dict[str, Any]:
        """Write a PDU and wait for its response."""
        sent = await self.send(session, command, **fields)
        answer = await self.event("response", session=session, sequence_number=sent["sequence_number"])
        return answer["pdu"]

    async def request(self, command: str, *, timeout: float = WAIT) -> dict[str, Any]:
        """The next request of this kind that the other side made: {"session", "pdu", "at"}."""
        return await self.event("request", command=command, timeout=timeout)

    async def event(self, name: str, *, timeout: float = WAIT, **wanted: Any) -> dict[str, Any]:
        """The oldest event of this name, not yet taken, whose own or whose PDU's values are these."""
        async with asyncio.timeout(timeout):
            while True:
                for event in self._events:
                    values = {**event.get("pdu", {}), **event}
                    if (
                        event["event"] == name
                        and wanted.items() <= {k: values.get(k) for k in wanted}.items()
                    ):
                        self._events.remove(event)
                        return event
                self._news.clear()
                await self._news.wait()

    async def _read(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            event = json.loads(line)
            event["at"] = asyncio.get_running_loop().time()
            if event["event"] == "error":
                self.errors.append(event["text"])
            self._events.append(event)
            self._news.set()


def text_of(pdu: dict[str, Any]) -> str:
    """The text of a message as npm decoded it (the body without its header)."""
    return pdu["short_message"]["message"]
