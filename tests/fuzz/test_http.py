"""The HTTP doors against strangers: a real web server, requests written octet by octet.

Never a 5xx, never a hang, the memory flat. A request is a function of its seed.
"""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from django.conf import settings

from caplai.store.db import conninfo
from tests.ports import free_port

REQUESTS = 1500
PATHS = [
    "/",
    "/login/",
    "/logout/",
    "/choose-password/",
    "/static/",
    "/_allauth/app/v1/config",
    "/_allauth/app/v1/auth/session",
    "/_allauth/app/v1/auth/login",
    "/_allauth/app/v1/auth/choose_password",
    "/.well-known/openid-configuration",
    "/.well-known/jwks.json",
    "/identity/o/authorize",
    "/identity/o/logout",
    "/identity/o/api/token",
    "/identity/o/api/userinfo",
    "/identity/o/api/revoke",
    "/identity/o/api/introspect",
    "/account/apps/end/",
]
METHODS = [*["GET", "POST", "POST"] * 4, "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "FOO"]
TYPES = [
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "multipart/form-data",
    "text/html; charset=\xff",
    "application/json; charset=utf-16",
    "application/json;;;",
    "",
]
STRANGE = [
    "",
    "0",
    "null",
    "\0",
    "\ud800",
    "é" * 300,
    "%00",
    "%ff%fe",
    "'\"<>",
    "../" * 20,
    "1" * 5000,
    "ﷺ",
    "0123456789",
]


def text(draw):
    return draw.choice(STRANGE) + draw.choice(["", draw.randbytes(draw.randint(0, 20)).decode("latin-1")])


def value(draw, depth=0):
    """Any JSON."""
    kind = draw.randint(0, 6 if depth < 4 else 4)
    if kind < 3:
        return text(draw)
    if kind == 3:
        return draw.choice([None, True, False, 0, -1, 1e308, 10**400, 1.5])
    if kind == 4:
        return draw.randint(-(2**70), 2**70)
    if kind == 5:
        return [value(draw, depth + 1) for _ in range(draw.randint(0, 4))]
    return {text(draw): value(draw, depth + 1) for _ in range(draw.randint(0, 4))}


def body(draw):
    kind = draw.randint(0, 7)
    if kind == 0:
        return b""
    if kind == 1:
        return draw.randbytes(draw.randint(1, 300))
    if kind == 2:
        return json.dumps(value(draw)).encode("utf-8", "surrogatepass")
    if kind == 3:
        names = draw.sample(["username", "password", "new_password", "x"], 3)
        return json.dumps({name: value(draw, 3) for name in names}).encode("utf-8", "surrogatepass")
    if kind == 4:
        return b"[" * draw.choice([10, 1000, 100_000]) + b"1" * draw.choice([0, 5000])
    if kind == 5:
        return b"username=" + text(draw).encode("utf-8", "replace") + b"&password=%00%ff" + draw.randbytes(9)
    if kind == 6:
        return (
            b'--x\r\nContent-Disposition: form-data; name="username"; filename="\0"\r\n\r\n'
            + draw.randbytes(50)
        )
    return b"a" * draw.choice([5000, 3_000_000])


def request(draw):
    """One request, well formed or not: its octets, and whether the server has all that it says there is."""
    path = draw.choice(PATHS) + draw.choice(
        ["", "", "", "", "", "", "?lang=en", "?next=" + "%2f" * 9, "?%ff=%00", "/../", "%00"]
    )
    content = body(draw)
    lines = [
        f"{draw.choice(METHODS)} {path} HTTP/1.{draw.choice('110')}",
        "Host: " + draw.choice(["localhost"] * 50 + ["\xff", "a b", ""]),
    ]
    if kind := draw.choice(TYPES):
        lines.append(f"Content-Type: {kind}")
    length = len(content) if draw.random() < 0.9 else draw.choice([0, len(content) + 10, -1, 10**20, "x"])
    if draw.random() < 0.97:
        lines.append(f"Content-Length: {length}")
    for name in [
        "Cookie",
        "X-Session-Token",
        "X-Device-Token",
        "X-Forwarded-For",
        "Accept-Encoding",
        "Range",
        "If-None-Match",
    ]:
        if draw.random() < 0.2:
            cookie = draw.choice(["caplai_session=", "csrftoken=", "lang=", "caplai_device=", ""])
            junk = (
                re.sub("[\\x00-\\x1f\\x7f]", "" if draw.random() < 0.9 else "\t", text(draw))
                .encode("latin-1", "replace")
                .decode("latin-1")
            )
            lines.append(f"{name}: {cookie if name == 'Cookie' else ''}{junk}")
    if chunked := draw.random() < 0.05:
        lines.append("Transfer-Encoding: chunked")
    octets = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1", "replace") + content
    whole = length in (len(content), 0, -1, "x") and not chunked
    if draw.random() < 0.1:
        return octets[: draw.randrange(len(octets))], False
    return octets, whole


def ask(port, octets, whole=True):
    """The status, or None when the server just closes. Where it waits for more we end the connection: it drops it."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), 20.0) as connection:
        try:
            connection.sendall(octets)
            if not whole:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                got += chunk
        except TimeoutError:
            raise
        except OSError:
            pass  # it has heard enough
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", got)
    return int(found[1]) if found else None


def resident(pid):
    """MB of a process and its children."""
    pages = 0
    for each in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture
def web(transactional_db, tmp_path):
    port = free_port()
    if not settings.KEYRING.read().get("oidc"):
        settings.KEYRING.add("oidc")  # without one a client hears 503
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")} | {
        "CAPLAI_DATABASE_URL": conninfo(),
        "CAPLAI_DATA_DIR": str(settings.CAPLAI.data_dir),
        "CAPLAI_PORT": str(port),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "caplai", "web", "--quiet"], env=environment, stderr=log
        )
        try:
            end = time.monotonic() + 30
            while True:
                with contextlib.suppress(OSError):
                    ask(port, b"GET /login/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    break
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.1)
            yield process.pid, port, tmp_path / "log"
        finally:
            process.terminate()
            process.wait(15)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_request_breaks_the_web_server(web):
    pid, port, log = web
    seen = {}
    memory = 0.0
    for seed in range(REQUESTS):
        began = time.monotonic()
        status = ask(port, *request(random.Random(seed)))
        seen[status] = seen.get(status, 0) + 1
        assert status is None or status < 500, f"seed {seed}: {status}\n{log.read_text()[-2000:]}"
        assert time.monotonic() - began < 15, f"seed {seed} takes long"
        if seed == REQUESTS // 3:
            memory = resident(pid)
    assert ask(port, b"GET /login/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == 200
    assert {200, 400, 404, 405, 415} <= seen.keys()
    assert resident(pid) < memory + 30
    assert "Traceback" not in log.read_text()
    print(seen, f"{memory:.0f} MB after a third, {resident(pid):.0f} MB in the end")
