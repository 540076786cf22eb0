"""Keys on several hosts: real engines and web servers, each host with a keyring of its own, on one database."""

import asyncio
import contextlib
import http.cookiejar
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.hashers import make_password

from caplai.processes import wait_for_port
from caplai.service import keys
from caplai.signin import hashers
from caplai.smpp.pdu import Status
from caplai.store.db import conninfo
from caplai.store.keyring import KeyringFile
from caplai.store.models import Account, Login
from tests.channels.carrier import Carrier
from tests.ports import free_port

SILENCE = timedelta(seconds=2)
LEAD = timedelta(seconds=1)
CHOSEN = "bà ngoại nấu phở"


class Host:
    """A folder with a keyring, and the processes that run there."""

    def __init__(self, folder: Path, like: "Host | None" = None, **settings: str):
        self.folder = folder
        folder.mkdir()
        self.keyring = KeyringFile(folder / "keyring.json")
        if like:
            self.copy(like)
        self.keyring.create()
        self.port = free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
        self.environment = {
            **inherited,
            "CAPLAI_DATABASE_URL": conninfo(),
            "CAPLAI_DATA_DIR": str(folder),
            "CAPLAI_PORT": str(self.port),
            "CAPLAI_KEYS__LEAD": "PT1S",
            "CAPLAI_KEYS__SILENCE": "PT2S",
            **settings,
        }

    def copy(self, host):
        new = self.folder / "copy"
        shutil.copy2(host.folder / "keyring.json", new)
        new.replace(self.folder / "keyring.json")

    @contextlib.contextmanager
    def running(self, *commands):
        processes = []
        try:
            for command in commands:
                with (self.folder / f"{command}.log").open("ab") as log:
                    words = [sys.executable, "-m", "caplai", command]
                    processes.append(
                        subprocess.Popen(words, env=self.environment, cwd=self.folder, stdout=log, stderr=log)
                    )
            if "web" in commands:
                assert wait_for_port("127.0.0.1", self.port, 60), self.log("web")
            yield processes
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)

    def log(self, command):
        return (self.folder / f"{command}.log").read_text()

    def signs_in(self, code, password):
        """The status that an app gets; 401 leads on to choosing a password, where it was the issued one."""
        body = json.dumps({"username": code, "password": password}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/_allauth/app/v1/auth/login",
            body,
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code


class Browser:
    def __init__(self):
        self.opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )

    def get(self, host, path):
        with self.opener.open(f"http://127.0.0.1:{host.port}{path}", timeout=20) as response:
            return response.url, response.read().decode()

    def post(self, host, path, **fields):
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', self.get(host, path)[1])[1]
        body = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token}).encode()
        with self.opener.open(f"http://127.0.0.1:{host.port}{path}", body, timeout=20) as response:
            return response.url

    def is_in(self, host):
        return self.get(host, "/")[0].endswith(f":{host.port}/")


async def until(condition, seconds=30.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.1)


def state(conn, key):
    return conn.execute("select state from key where id = %s", [key]).fetchone()[0]


@pytest.fixture
def citizens(transactional_db):
    for n in range(3):
        Account.objects.create(code=f"012345678{n}", phone=f"+8432700068{n}", state="approved")


async def password(carrier, n):
    """What the phone of the nth citizen is told."""
    before = len(carrier.submitted)
    assert await carrier.deliver(f"BH MK 012345678{n}", f"8432700068{n}") == Status.ESME_ROK
    texts = await carrier.replies(before + 1, 30)
    return re.search(r"Mat khau: (\d{6})", texts[-1])[1]


def case_key(conn, n):
    return conn.execute(
        "select key from reissue_case where account = %s and ended_at is null", [f"012345678{n}"]
    ).fetchone()[0]


@pytest.mark.slow
def test_a_rotation_reaches_every_host_before_it_is_used_anywhere(conn, citizens, tmp_path):
    async def play():
        async with Carrier() as carrier:
            link = {"name": "viettel", "host": "127.0.0.1", "port": carrier.port, "password": "secret"}
            one = Host(tmp_path / "one", CAPLAI_LINKS=json.dumps([link]))
            two = Host(tmp_path / "two", like=one)
            old = one.keyring.first("issuing")
            with one.running("engine", "web"), two.running("engine", "web"):
                await carrier.bound()
                await until(lambda: conn.execute("select count(*) from process").fetchone()[0] == 4)
                before = await password(carrier, 0)

                new = keys.rotate(conn, one.keyring, "issuing", LEAD, SILENCE).id
                await asyncio.sleep(2 * SILENCE.total_seconds())
                assert state(conn, new) == "waiting"
                between = await password(carrier, 1)
                assert case_key(conn, 0) == case_key(conn, 1) == old
                assert f"the new issuing key {new} waits for this host" in two.log("web") + two.log("engine")

                two.copy(one)
                await until(lambda: state(conn, new) == "active")
                after = await password(carrier, 2)
                assert case_key(conn, 2) == new
                for n, issued in enumerate([before, between, after]):
                    for host in one, two:
                        assert await asyncio.to_thread(host.signs_in, f"012345678{n}", issued) == 401

                # Nothing needs the old key any more: the engine ends it, and every host removes it.
                conn.execute("update reissue_case set expires_at = now() where key = %s", [old])
                conn.execute("update key set looked_at = null, retired_at = retired_at - interval '2 hours'")
                keys.end_unneeded(conn, timedelta(hours=12))
                for host in one, two:
                    await until(lambda host=host: old not in (host.folder / "keyring.json").read_text())
                    assert await asyncio.to_thread(host.signs_in, "0123456782", after) == 401

    asyncio.run(play())


@pytest.mark.slow
def test_a_host_that_comes_up_without_an_active_key_serves_nobody_until_it_has_it(conn, citizens, tmp_path):
    async def play():
        async with Carrier() as carrier:
            link = {"name": "viettel", "host": "127.0.0.1", "port": carrier.port, "password": "secret"}
            one = Host(tmp_path / "one")
            late = Host(tmp_path / "late", like=one, CAPLAI_LINKS=json.dumps([link]))
            new = keys.rotate(conn, one.keyring, "issuing", LEAD, SILENCE, now=True).id
            with late.running("engine", "web"):
                for code in "0123456780", "9999999999", "nobody":
                    assert await asyncio.to_thread(late.signs_in, code, "123456") == 503
                await until(lambda: conn.execute("select count(*) from process").fetchone()[0] == 2)
                await asyncio.sleep(1)
                assert not carrier.binds, "it must leave the link to who has the key"
                for command in "engine", "web":
                    assert late.log(command).count(f"lacks the issuing key {new}, which is in use") == 1
                late.copy(one)
                await carrier.until(lambda: any(c.bound for c in carrier.connections), 30)
                issued = await password(carrier, 0)
                await until(lambda: late.signs_in("9999999999", "123456") == 400)
                assert await asyncio.to_thread(late.signs_in, "0123456780", issued) == 401

    asyncio.run(play())


@pytest.mark.slow
def test_a_host_that_comes_to_lack_a_key_leaves_its_link_to_one_that_has_it(conn, citizens, tmp_path):
    """Who rotates "now" on one host waits for nobody: the replies with the new key are that host's to send."""

    async def play():
        async with Carrier() as carrier:
            link = {"name": "viettel", "host": "127.0.0.1", "port": carrier.port, "password": "secret"}
            one = Host(tmp_path / "one", CAPLAI_LINKS=json.dumps([link]))
            two = Host(tmp_path / "two", like=one, CAPLAI_LINKS=json.dumps([link]))
            with one.running("engine"):
                await carrier.until(lambda: carrier.binds, 60)
                await carrier.bound()
                with two.running("engine"):
                    await until(lambda: conn.execute("select count(*) from process").fetchone()[0] == 2)
                    keys.rotate(conn, two.keyring, "issuing", LEAD, SILENCE, now=True)
                    await carrier.until(lambda: len(carrier.binds) == 2, 30)
                    await carrier.bound()
                    assert await password(carrier, 0)
                    assert "this host lacks keys that are in use; unbinding" in one.log("engine")
                    one.copy(two)
                await carrier.until(lambda: len(carrier.binds) == 3, 30)  # two has ended; one is fit again
                await carrier.bound()
                assert await password(carrier, 1)

    asyncio.run(play())


@pytest.mark.slow
def test_cookies_survive_a_rotation_of_the_web_key(conn, citizens, tmp_path, monkeypatch):
    one = Host(tmp_path / "one")
    two = Host(tmp_path / "two", like=one)
    monkeypatch.setattr(hashers, "_peppers", lambda: one.keyring.ring("pepper"))
    Login.objects.create(username="0123456780", account_id="0123456780", password=make_password(CHOSEN))
    with one.running("web"), two.running("web"):
        early, late = Browser(), Browser()
        early.post(one, "/login/", username="0123456780", password=CHOSEN)
        assert early.is_in(one) and early.is_in(two)
        old = one.keyring.first("web")
        new = keys.rotate(conn, one.keyring, "web", LEAD, SILENCE).id
        two.copy(one)
        asyncio.run(until(lambda: state(conn, new) == "active"))
        late.post(two, "/login/", username="0123456780", password=CHOSEN)
        for browser in early, late:
            assert browser.is_in(two) and browser.is_in(one)

        # What was signed since then was signed with the new one, by both: a host that never had the old one agrees.
        third = Browser()
        third.post(one, "/login/", username="0123456780", password=CHOSEN)
        conn.execute("update key set retired_at = retired_at - interval '14 hours' where id = %s", [old])
        assert [one.id for one in keys.end_unneeded(conn, timedelta(hours=12))] == [old]
        for host in one, two:
            asyncio.run(until(lambda host=host: old not in (host.folder / "keyring.json").read_text()))
        three = Host(tmp_path / "three", like=one)
        with three.running("web"):
            for browser in late, third:
                assert browser.is_in(three) and browser.is_in(one) and browser.is_in(two)
