"""An HTTP/1.1 client that costs little: on two cores, what the benchmark spends the site cannot have."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

_COOKIE = re.compile(rb"\r\nset-cookie: ([^=;]+)=([^;]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    head: bytes
    body: bytes
    seconds: float
    """From the connection's beginning to the answer's end."""

    @property
    def cookies(self) -> str:
        """What was set, as a Cookie header sends it back."""
        return "; ".join(f"{name.decode()}={value.decode()}" for name, value in _COOKIE.findall(self.head))


def post_json(path: str, body: Mapping[str, str], **headers: str) -> bytes:
    return _request("POST", path, json.dumps(body).encode(), content_type="application/json", **headers)


def post_form(path: str, body: Mapping[str, str], **headers: str) -> bytes:
    kind = "application/x-www-form-urlencoded"
    return _request("POST", path, urlencode(body).encode(), content_type=kind, **headers)


def get(path: str) -> bytes:
    return _request("GET", path)


def _request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def ask(port: int, request: bytes) -> Answer:
    """One request on a connection of its own, as of a phone that comes once. Raises OSError."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        said = await reader.read(-1)
    finally:
        writer.close()
    head, _, body = said.partition(b"\r\n\r\n")
    status = int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0
    return Answer(status, head, body, time.perf_counter() - began)


async def crowd(size: int, seconds: float, visit: Callable[[int], Awaitable[None]]) -> tuple[int, float]:
    """`size` people at a time, who come one after another for so long; each makes `visit(n)`, n counting from 0.

    Returns how many came, and the seconds until the last had left.
    """
    count, began = 0, time.monotonic()

    async def stream() -> None:
        nonlocal count
        while time.monotonic() - began < seconds:
            count, n = count + 1, count
            await visit(n)

    await asyncio.gather(*(stream() for _ in range(size)))
    return count, time.monotonic() - began
