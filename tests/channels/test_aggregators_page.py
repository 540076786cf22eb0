"""What the integrator's page says is true: its examples are run as they stand, against `caplai web` itself."""

import json
import re
import shutil
import socket
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from caplai.channels.aggregators import Aggregator
from caplai.store.models import Inbox
from tests.channels.site import JSON, KANNEL, LAN, PHONE, SECRET, kannel_url, web_process

PAGE = Path(__file__).parent.parent.parent / "docs" / "aggregators.md"
REPLY = f"Cap lai mat khau thanh cong. Tai khoan: {LAN}/Mat khau: "


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def documented():
    """The aggregators of the page's configurations."""
    return [each for block in blocks("toml") for each in tomllib.loads(block)["aggregators"]]


def test_the_configurations_of_the_page_are_good():
    assert [Aggregator.model_validate(each).name for each in documented()] == ["vnpt", "fpt", "mobi"]


@pytest.mark.peer
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("openssl")), reason="needs curl and openssl")
def test_the_examples_of_the_page_are_answered(conn, lan):
    vnpt, fpt, _ = documented()
    assert vnpt.pop("networks")
    with web_process(vnpt, fpt) as site:
        kannel, signed = (
            subprocess.run(
                ["sh", "-euc", script.replace("127.0.0.1:8000", f"127.0.0.1:{site.port}")],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for script in blocks("sh")
        )
    assert kannel.startswith(REPLY)
    assert json.loads(signed) == {"id": "1002", "reply": kannel}


def raw(port, request, *, hangs_up=False):
    """The whole answer to octets that no HTTP library would send."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        if hangs_up:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer.decode()


def test_the_web_server_hands_everything_through(conn, lan):
    """Octets that are no UTF-8, sixteen requests at once with one id, bodies in chunks and of any size."""
    end = b" HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n"
    with web_process(KANNEL, JSON) as site:
        query = f"/sms/vnpt/{SECRET}?to=8079&from=+{PHONE}&charset=latin1&text=BH+MK+m%E3+".encode()
        answer = raw(site.port, b"GET " + query + LAN.encode() + end + b"\r\n")
        assert REPLY in answer
        query = query.replace(b"latin1", b"utf-8").replace(b"m%E3", "mã".encode())  # nor encoded at all
        assert REPLY in raw(site.port, b"GET " + query + LAN.encode() + end + b"\r\n")
        assert set(Inbox.objects.values_list("text", flat=True)) == {f"BH MK mã {LAN}"}

        with ThreadPoolExecutor(16) as pool:
            answers = set(pool.map(lambda _: site.ask("GET", kannel_url(id="one"))[::2], range(16)))
        assert len(answers) == 1
        assert answers.pop()[0] == 200
        assert list(Inbox.objects.values_list("outcome", flat=True)) == ["issued", "joined", "joined"]

        chunks = b"Transfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n2\r\nBH\r\n0\r\n\r\n"
        assert " 411 " in raw(site.port, f"POST /sms/vnpt/{SECRET}".encode() + end + chunks)
        assert " 413 " in raw(
            site.port, f"POST /sms/vnpt/{SECRET}".encode() + end + b"Content-Length: 3000000\r\n\r\n"
        )
        # Who hangs up in the midst of a text has sent none, and may send it again under the same id.
        post = f"POST /sms/vnpt/{SECRET}?to=8079&from={PHONE}&id=cut".encode() + end
        post += b"Content-Type: text/plain\r\nContent-Length: 16\r\n\r\n"
        assert " 400 " in raw(site.port, post + b"BH MK 01234", hangs_up=True)
        assert Inbox.objects.count() == 3
        assert REPLY in raw(site.port, post + b"BH MK " + LAN.encode())
