"""Nothing leaks: a service runs, and is killed, with secrets that we know; then every file that it wrote is searched.

Six digits are found in any large file by chance, so this service issues twelve letters.
"""

import asyncio
import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest
from aiosmtpd.controller import Controller

from caplai.domain.issuing import LETTERS
from caplai.local_postgres import LocalPostgres
from caplai.processes import wait_for_port
from caplai.simulator import Simulator, SimulatorConfig
from caplai.simulator.smsc import Rules
from caplai.store.keyring import KINDS, KeyringFile
from tests.mailbox import Mailbox, text_of
from tests.planted import files_under, forms, search
from tests.ports import free_port

CITIZENS = 20
COMES_BACK, MAIL = 3, "lan.truong@example.vn"
"""Who forgets once more and comes back by the site: by SMS, then by e-mail."""
AGGREGATOR = "tong-dai-mien-trung"
NOTHING_DECIDED = b"nothing can be decided"


class SendUrl(http.server.BaseHTTPRequestHandler):
    """An aggregator's send URL that fails: what it is asked is kept in `asked`, and comes again."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(urllib.parse.unquote_plus(self.path))
        self.send_error(500)

    def log_message(self, *_):
        pass


class Service:
    """`caplai up` on a data folder, with the simulator as its carrier and an aggregator. What it logs goes to `log`,
    what was scraped from it to files beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "service.log"
        self.data = folder / "data"
        self.database = LocalPostgres(self.data / "postgres")

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.simulator = self.call(Simulator(SimulatorConfig(rules=Rules(retries=100))).__aenter__())
        self.port = free_port()
        self.watched = {"engine": free_port(), "web": free_port()}
        self.send_url = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SendUrl)
        threading.Thread(target=self.send_url.serve_forever, daemon=True).start()
        self.mailbox = Mailbox()
        self.mailserver = Controller(self.mailbox, hostname="127.0.0.1", port=free_port())
        self.mailserver.start()
        self.aggregator_secret = "Gieo2Chuoi3De4Tim5"
        self.send_secret = "Mat6Ma7Cua8Cong9"
        aggregator = {
            "name": AGGREGATOR,
            "format": "kannel",
            "secrets": [self.aggregator_secret],
            "reply": "send",
            "send": {
                "url": f"http://127.0.0.1:{self.send_url.server_address[1]}/sendsms",
                "method": "GET",
                "username": "caplai",
                "secret": self.send_secret,
            },
        }
        link = {
            "name": "carrier",
            "host": "127.0.0.1",
            "port": self.simulator.smpp_port,
            "password": "secret",
        }
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")},
            "CAPLAI_DATA_DIR": str(self.data),
            "CAPLAI_LINKS": json.dumps([link]),
            "CAPLAI_AGGREGATORS": json.dumps([aggregator]),
            "CAPLAI_WATCH__ENGINE_PORT": str(self.watched["engine"]),
            "CAPLAI_WATCH__WEB_PORT": str(self.watched["web"]),
            "CAPLAI_LOG__FORMAT": "json",
            "CAPLAI_LOG__LEVEL": "debug",
            "CAPLAI_LOG__MESSAGES": "true",
            "CAPLAI_PORT": str(self.port),
            "CAPLAI_PUBLIC_URL": f"http://127.0.0.1:{self.port}",
            "CAPLAI_MAIL__HOST": "127.0.0.1",
            "CAPLAI_MAIL__PORT": str(self.mailserver.port),
            "CAPLAI_MAIL__TLS": "none",
            "CAPLAI_MAIL__SENDER": "caplai@agency.example.vn",
            "CAPLAI_PASSWORD__LENGTH": "12",
            "CAPLAI_PASSWORD__ALPHABET": LETTERS,
        }
        self.out = (self.folder / "service.out").open("wb")
        self.errors = self.log.open("wb")
        self.up = subprocess.Popen(
            [sys.executable, "-m", "caplai", "up"],
            env=self.environment,
            stdout=self.out,
            stderr=self.errors,
            start_new_session=True,
        )
        assert wait_for_port("127.0.0.1", self.port, 60)
        return self

    def __exit__(self, *_):
        self.up.send_signal(signal.SIGTERM)
        self.up.wait(30)
        self.database.stop()  # which was handed on to us
        self.call(self.simulator.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.mailserver.stop()
        self.send_url.shutdown()
        self.send_url.server_close()
        self.out.close()
        self.errors.close()

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(90)

    def command(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "caplai", *words], env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def text(self, phone: str, words: str) -> str:
        async def talk():
            message = await self.simulator.send(phone, words)
            return await self.simulator.reply(phone, after=message, timeout=80)

        return self.call(talk()).text

    def newest(self, phone: str, seen: int) -> tuple[str, int]:
        """The first text that came to the phone after that one, and its number."""
        message = self.call(self.simulator.reply(phone, after=seen, timeout=80))
        return message.text, message.id

    def mailed(self, address: str, words: str) -> str:
        """The newest mail to an address with these words in it, waited for."""
        end = time.monotonic() + 60
        while True:
            if found := [text for text in map(text_of, self.mailbox.to(address)) if words in text]:
                return found[-1]
            assert time.monotonic() < end, f"no mail with {words}"
            time.sleep(0.1)  # another process sends it

    def post(self, path: str, body: dict, token: str | None = None) -> tuple[int, dict]:
        headers = {"Content-Type": "application/json", **({"X-Session-Token": token} if token else {})}
        url = f"http://127.0.0.1:{self.port}/_allauth/app/v1/auth/{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            page = error.read()
            return error.code, json.loads(page) if page.startswith(b"{") else {}

    def get(self, path: str, *, port: int | None = None) -> tuple[int, str]:
        """What a path answers, with a code and a phone wherever else a request may carry one."""
        headers = {"User-Agent": path, "X-Request-Id": path[-64:], "Referer": f"http://x{path}"}
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")

    def scrape(self, when: str) -> None:
        """Keep what every address for operators says now, and the probes on the public port."""
        for name, port in (*self.watched.items(), ("public", self.port)):
            for path in "metrics", "readyz", "healthz":
                status, body = self.get(f"/{path}", port=port)
                file = self.folder / f"scraped-{when}-{name}-{path}"
                file.write_text(f"{status} {body}", "utf-8")

    def child(self, name: str) -> int:
        """The pid of `caplai NAME` under `caplai up`."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if status.read_text().rpartition(")")[2].split()[1] == str(self.up.pid):
                    words = (status.parent / "cmdline").read_bytes().split(b"\0")
                    if name.encode() in words:
                        return int(status.parent.name)
        raise LookupError(name)

    def dsn(self) -> str:
        return self.database.ensure_running().dsn  # joins it


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The service after everything happened to it, stopped; and every secret and person that it met."""
    folder = tmp_path_factory.mktemp("planted")
    secrets: dict[str, str] = {}
    people: dict[str, str] = {}
    with Service(folder) as service:
        rows = ["code,phone,email,state"]
        for n in range(CITIZENS):
            code, phone = f"{7_351_902_468 + n * 1_000_003:010}", f"0327{181_000 + n * 37:06}"
            people |= {f"code of {n}": code, f"phone of {n}": phone[1:]}
            rows.append(f"{code},{phone},{MAIL if n == COMES_BACK else ''},approved")
        (folder / "accounts.csv").write_text("\n".join(rows))
        service.command("accounts", "import", str(folder / "accounts.csv"))
        (folder / "accounts.csv").unlink()
        with psycopg.connect(service.dsn(), autocommit=True) as conn:
            conn.execute("update account set created_at = created_at - interval '30 days'")
        for n in range(CITIZENS):
            _live(service, n, people, secrets)
            if n == CITIZENS // 3:
                os.kill(service.child("engine"), signal.SIGABRT)  # what would write a core
            elif n == CITIZENS // 2:
                service.command("keys", "rotate", "pepper")
                _break_the_tables(service)
                service.scrape("after the break")
            elif n == COMES_BACK:
                _come_back(service, people, secrets)
            elif n == CITIZENS // 4:
                _come_by_other_ways(service, people, secrets)
        with psycopg.connect(service.dsn(), autocommit=True) as conn:
            # What sorts more than fits its memory writes temporary files.
            conn.execute("set work_mem = '64kB'")
            conn.execute("select * from inbox, generate_series(1, 500) order by text, 1").fetchone()
            conn.execute("checkpoint")
        os.kill(service.database.status().pid, signal.SIGKILL)
        time.sleep(2)
        # In other words than a moment ago: the same ones, around a crash, may be a redelivery.
        _live(service, 0, people, {}, words="bh mk")
        service.scrape("at the end")
        keyring = KeyringFile(service.data / "keyring.json")
        for kind in KINDS:
            for key_id, key in keyring.ring(kind).keys.items():
                secrets[f"key {key_id}"] = key.decode("latin-1")
                secrets[f"key {key_id}, hex"] = key.hex()
        yield service, secrets, people


def _live(
    service: Service, n: int, people: dict[str, str], secrets: dict[str, str], words: str = "BH MK"
) -> None:
    """One citizen texts, mistypes, signs in, chooses, and is in."""
    code, phone = people[f"code of {n}"], "0" + people[f"phone of {n}"]
    reply = service.text(phone, f"{words} {code}")
    found = re.search(r"Mat khau: (\w+)\.", reply)
    if found is None:  # over the limits
        return
    issued, chosen = found.group(1), f"con trau di truoc {n * 7919} cai cay"
    assert "khong khop" in service.text(f"0911{n:06}", f"BH MK {code} nham")
    service.post("login", {"username": code, "password": chosen[::-1]})
    status, answer = service.post("login", {"username": code, "password": issued})
    assert status == 401
    token = answer["meta"]["session_token"]
    status, answer = service.post("choose_password", {"new_password": chosen}, token)
    assert status == 200
    secrets |= {
        f"issued password of {n}": issued,
        f"chosen password of {n}": chosen,
        f"mistyped password of {n}": chosen[::-1],
        f"pending session of {n}": token,
        f"session of {n}": answer["meta"]["session_token"],
        f"device of {n}": answer["meta"]["device_token"],
    }


def _come_back(service: Service, people: dict[str, str], secrets: dict[str, str]) -> None:
    """A one-time code by SMS and a new password; a link by e-mail and a password of one's own; the notices of both."""
    code, phone = people[f"code of {COMES_BACK}"], "0" + people[f"phone of {COMES_BACK}"]
    seen = max(message.id for message in service.simulator.phones.conversation("84" + phone[1:]).messages)
    status, answer = service.post("recover", {"code": code})
    assert status == 200, answer
    token = answer["meta"]["session_token"]
    text, seen = service.newest(phone, seen)
    otp = re.search(r"la (\d{6})\.", text)[1]
    assert service.post("recover/otp", {"otp": f"{(int(otp) + 1) % 10**6:06}"}, token)[0] == 400
    status, answer = service.post("recover/otp", {"otp": otp}, token)
    assert (status, answer["data"]["request"]["outcome"]) == (200, "issued"), answer
    text, seen = service.newest(phone, seen)
    issued = re.search(r"Mat khau moi: (\w+)", text)[1]
    status, answer = service.post("recover", {"code": code, "channel": "email"})
    assert status == 200, answer
    mail = service.mailed(MAIL, "/recover/link/#")
    link = re.search(r"/recover/link/#(\S+)", mail)[1]
    status, answer = service.post("recover/link", {"token": link})
    assert status == 401, answer
    chosen = "con co bay la bay la"
    pending = answer["meta"]["session_token"]
    status, answer = service.post("choose_password", {"new_password": chosen}, pending)
    assert status == 200, answer
    report = re.search(r"/report/([^/\s]+)/", service.mailed(MAIL, "/report/"))[1]
    assert service.get(f"/report/{report}/")[0] == 200
    people["address"] = MAIL
    secrets |= {
        # Six digits are found by chance; so they are looked for as they are sent.
        "one-time code": f"la {otp}. Khong",
        "one-time code, as an app sends it": f'"otp": "{otp}"',
        "password by the page": issued,
        "the link's token": link,
        "the report's token": report,
        "password chosen after the mail": chosen,
        "session of a request": token,
        "pending session after the mail": pending,
        "session after the mail": answer["meta"]["session_token"],
    }


def _come_by_other_ways(service: Service, people: dict[str, str], secrets: dict[str, str]) -> None:
    """A text by the aggregator, whose send URL fails; and URLs that people and their browsers should not write."""
    code, phone = people["code of 0"], people["phone of 0"]
    text = urllib.parse.urlencode({"from": f"+84{phone}", "to": "8079", "text": f"BH MK {code}", "id": "a-1"})
    assert service.get(f"/sms/{AGGREGATOR}/{service.aggregator_secret}?{text}") == (200, "")
    assert service.get(f"/sms/{AGGREGATOR}?secret={service.send_secret}&{text}")[0] == 403
    end = time.monotonic() + 30
    while not SendUrl.asked:
        assert time.monotonic() < end, "the reply was not sent"
        time.sleep(0.1)
    found = re.search(r"Mat khau: (\w+)\.", SendUrl.asked[0])
    assert found
    typed = "mat-khau-trong-url"
    for path in (
        f"/login/?username={code}&password={typed}",
        f"/{code}/0{phone}?x={typed}",
        f"/_allauth/app/v1/auth/session?username={code}&password={typed}",
        f"/static/{code}?{typed}",
        f"/login/{typed}?lang=%ff",
    ):
        assert service.get(path)[0] < 500
    secrets |= {
        "aggregator's secret": service.aggregator_secret,
        "secret of the send URL": service.send_secret,
        "password by the send URL": found.group(1),
        "password in a URL": typed,
    }


def _break_the_tables(service: Service) -> None:
    """A bug of ours, or an operator's slip: every statement of the deciding fails for a while."""
    with psycopg.connect(service.dsn(), autocommit=True) as conn:
        conn.execute("alter table reissue_case rename column texts to texts_")
        conn.execute("alter table guess rename to guess_")
        service.call(service.simulator.send("0911222444", "BH MK 7351902468"))
        service.post("login", {"username": "7351902468", "password": "khong phai mat khau nay"})
        time.sleep(1.5)  # for more that fails, and is told
        end = time.monotonic() + 30
        while NOTHING_DECIDED not in service.log.read_bytes():
            assert time.monotonic() < end, "the engine did not say that it decides nothing"
            time.sleep(0.1)  # a file tells nobody that it grows
        conn.execute("alter table guess_ rename to guess")
        conn.execute("alter table reissue_case rename column texts_ to texts")
    time.sleep(1.5)


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestAfterALongRun:
    def test_no_secret_is_in_any_file(self, run):
        service, secrets, _ = run
        assert len(secrets) > 5 * CITIZENS
        files = [path for path in files_under(service.folder) if path.name != "keyring.json"]
        assert any("pg_wal" in path.parts for path in files)
        assert any("base" in path.parts for path in files)
        assert sum(path.stat().st_size for path in files) > 2e7
        assert list(search(secrets, files)) == []

    def test_no_phone_and_no_code_is_in_a_log(self, run):
        service, _, people = run
        logs = [service.log, *(path for path in files_under(service.data) if "log" in path.name)]
        assert len(logs) > 1
        logs += [service.folder / "service.out", *service.folder.glob("scraped-*")]
        assert NOTHING_DECIDED in service.log.read_bytes()  # what broke was told
        assert list(search(people, logs)) == []
        assert (
            list(search({"of the break": "7351902468", "its password": "khong phai mat khau nay"}, logs))
            == []
        )

    def test_each_line_of_the_log_is_json(self, run):
        service, _, _ = run
        lines = [json.loads(line) for line in service.log.read_text("utf-8").splitlines()]
        loggers = {line["logger"] for line in lines}
        assert {"caplai.trail", "caplai.http", "caplai.engine"} <= loggers
        assert {f"aggregator {AGGREGATOR}: its send URL answers 500"} <= {line["message"] for line in lines}

    def test_what_was_scraped_is_what_operators_see(self, run):
        """So that the search looked at something: metrics of both, and none for the internet."""
        service, _, _ = run
        for when in "after the break", "at the end":
            said = {
                path.name.removeprefix(f"scraped-{when}-"): path.read_text("utf-8")
                for path in service.folder.glob(f"scraped-{when}-*")
            }
            assert (
                said["engine-metrics"].startswith("200 ")
                and "caplai_decisions_total" in said["engine-metrics"]
            )
            assert (
                said["web-metrics"].startswith("200 ") and "caplai_http_requests_total" in said["web-metrics"]
            )
            assert said["public-metrics"].startswith("404 ")
            for name in "engine", "web", "public":
                assert json.loads(said[f"{name}-readyz"][4:])["status"] in ("ready", "not ready")

    def test_no_core_was_left(self, run):
        service, _, _ = run
        assert [path for path in Path.cwd().glob("core*") if path.is_file()] == []
        assert [path for path in files_under(service.folder) if path.name.startswith("core")] == []

    def test_the_search_can_fail(self, run):
        """What stands in the database is found there, in its heap and in its WAL; so a leak would be."""
        service, _, people = run
        planted = "MẬT-KHẨU-GIEO-ĐỂ-TÌM"
        with psycopg.connect(service.dsn(), autocommit=True) as conn:
            conn.execute("create table leak as select %s as leaked", [planted])
            conn.execute("checkpoint")
        places = {
            path.parent.name if "pg_wal" not in path.parts else "pg_wal"
            for _, path in search({"planted": planted}, files_under(service.data))
        }
        assert "pg_wal" in places
        assert len(places) > 1
        assert {name for name, _ in search(people, files_under(service.data))} == set(people)


@pytest.mark.parametrize("before", [b"", b"x", b"yz"])
@pytest.mark.parametrize("form", sorted(forms("MatKhauCuaToi")), ids=repr)
def test_every_form_of_a_secret_is_found(tmp_path, form, before):
    file = tmp_path / "file"
    file.write_bytes(before + form + b"\0" * 100)
    assert next(search({"it": "MatKhauCuaToi"}, [file])) == ("it", file)
    file.write_bytes(before + form[:4] + b"?" + form[5:] + b"\0" * 100)
    assert list(search({"it": "MatKhauCuaToi"}, [file])) == []


def test_a_secret_across_a_boundary_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.planted._CHUNK", 16)
    file = tmp_path / "file"
    file.write_bytes(b"-" * 10 + b"MatKhauCuaToi" + b"-" * 50)
    assert list(search({"it": "MatKhauCuaToi"}, [file])) != []
