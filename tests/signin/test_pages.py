"""What surrounds the forms: headers, languages, cookies, proxies, errors, and the translation itself."""

import ast
import gzip
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from django.contrib.sessions.models import Session
from django.template import engines
from django.template.base import Template
from django.test import Client, RequestFactory
from django.utils import timezone

import caplai
from caplai.config import Config
from caplai.signin.middleware import TrustedProxy, network
from caplai.store.models import Case, Guess
from tests.signin.conftest import API, CHOSEN, App, is_in, sign_in, wrong

PACKAGE = Path(caplai.__file__).parent
LOCALE = PACKAGE / "locale" / "vi" / "LC_MESSAGES"


def test_headers_of_every_page(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    for path in ["/", "/login/", "/nowhere", "/_allauth/app/v1/auth/session"]:
        answer = browser.get(path)
        policy = answer["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer["Cache-Control"] == "no-store"
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert answer["Referrer-Policy"] == "same-origin"
        assert answer["Cross-Origin-Opener-Policy"] == answer["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "publickey-credentials-get=(self)" in answer["Permissions-Policy"]


def test_static_files_are_named_by_their_content_and_kept_for_a_year(browser, db):
    page = browser.get("/login/").content.decode()
    url = re.search(r"/static/caplai\.[0-9a-f]{12}\.css", page)[0]
    content = (PACKAGE / "signin" / "static" / "caplai.css").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith(url.split(".")[1])
    kept = browser.get(url)
    assert kept["Cache-Control"] == "max-age=315360000, public, immutable"
    assert kept["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in kept
    for other in ["/static/caplai.css", "/static/caplai.000000000000.css"]:  # of another version, say
        answer = browser.get(other)
        assert answer["Cache-Control"] == "max-age=60, public"
        assert b"".join(answer.streaming_content) == content
    assert browser.get("/static/nothing.css").status_code == 404


def test_static_files_go_out_compressed_and_pages_do_not(browser, db):
    takes = {"Accept-Encoding": "br;q=1.0, gzip;q=0.8, *;q=0.1"}
    page = browser.get("/login/", headers=takes)
    assert "Content-Encoding" not in page  # there is a token in it
    for kind in ("css", "js"):
        url = re.search(rf"/static/caplai\.[0-9a-f]{{12}}\.{kind}", page.content.decode())[0]
        whole, small = browser.get(url), browser.get(url, headers=takes)
        content, octets = b"".join(whole.streaming_content), b"".join(small.streaming_content)
        assert "Content-Encoding" not in whole
        assert small["Content-Encoding"] == "gzip"
        assert (
            gzip.decompress(octets) == content == (PACKAGE / "signin/static" / f"caplai.{kind}").read_bytes()
        )
        assert int(small["Content-Length"]) == len(octets) < len(content) / 1.8
        for answer in (whole, small):
            assert answer["Vary"] == "Accept-Encoding"
            assert answer["Cache-Control"] == "max-age=315360000, public, immutable"
            assert answer["Cross-Origin-Resource-Policy"] == "same-origin"
        assert browser.head(url, headers=takes)["Content-Length"] == small["Content-Length"]
        assert "Content-Encoding" not in browser.get(url, headers={"Accept-Encoding": "gzip;q=0, br"})
        again = browser.get(url, headers={**takes, "If-None-Match": small["ETag"]})
        assert (again.status_code, b"".join(again.streaming_content)) == (304, b"")
        part = browser.get(url, headers={**takes, "Range": "bytes=0-9"})
        assert (part.status_code, b"".join(part.streaming_content)) == (206, content[:10])
    assert "Content-Encoding" not in browser.get("/static/icon-192.png", headers=takes)


def test_manifest_is_in_vietnamese_and_its_icons_are_there(browser, db):
    answer = browser.get("/manifest.webmanifest")
    assert answer["Content-Type"] == "application/manifest+json"
    said = answer.json()
    assert (said["name"], said["lang"]) == ("Tài khoản giao dịch điện tử BHXH", "vi")
    assert {icon["purpose"] for icon in said["icons"]} == {"any", "maskable"}
    for icon in said["icons"]:
        kept = browser.get(icon["src"])
        assert (kept.status_code, kept["Content-Type"]) == (200, icon["type"])
        if icon["type"] == "image/png":
            width, height = struct.unpack(">II", b"".join(kept.streaming_content)[16:24])
            assert icon["sizes"] == f"{width}x{height}"


def test_the_sites_name_is_configuration(browser, db, settings):
    service = settings.CAPLAI.service.model_copy(
        update={"site_name": "Cổng Thử", "site_name_en": "Trial <b>"}
    )
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"service": service})
    for language, name in (("vi", "Cổng Thử"), ("en", "Trial &lt;b&gt;")):
        page = browser.get(f"/login/?lang={language}").content.decode()
        assert f" – {name}</title>" in page
        assert f'alt="">{name}</a>' in page
    assert Client().get("/manifest.webmanifest").json()["name"] == "Cổng Thử"


def test_service_worker_keeps_nothing_of_a_person(browser, citizen, login):
    sign_in(browser, citizen.code, CHOSEN)
    worker = browser.get("/service-worker.js")
    assert worker["Content-Type"] == "text/javascript"
    assert "worker-src 'self'" in worker["Content-Security-Policy"]
    files = re.search(r"FILES = \[(.*)\]", worker.content.decode())[1]
    assert re.fullmatch(r'PAGE(, "/static/caplai\.\w+\.(css|js|svg)"){3}', files)
    page = browser.get("/offline/")
    assert page.content == Client().get("/offline/").content  # the same for everybody
    assert page.content.decode().count('href="sms:8079?body=BH%20MK%20"') == 2


def test_over_https_cookies_belong_to_our_host_alone():
    code = """from caplai import settings as s
print(s.SESSION_COOKIE_NAME, s.CSRF_COOKIE_NAME, s.DEVICE_COOKIE_NAME, s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE,
      s.SECURE_HSTS_SECONDS, s.SECURE_HSTS_INCLUDE_SUBDOMAINS)"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CAPLAI_PUBLIC_URL": "https://caplai.example"},
        capture_output=True,
        text=True,
    )
    names = ["__Host-caplai_session", "__Host-csrftoken", "__Host-caplai_device"]
    assert told.stdout.split() == [*names, "True", "True", "31536000", "False"]


@pytest.mark.parametrize("path", ["/login/", "/nowhere"])
def test_pages_have_nothing_inline_and_nothing_foreign(browser, db, path):
    page = browser.get(path).content.decode()
    assert not re.search(r"<style|style=| on[a-z]+=|<script(?![^>]* src=)", page)
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)


def test_page_is_light(browser, db):
    page = browser.get("/login/").content
    static = PACKAGE / "signin" / "static"
    assert len(page) + sum(file.stat().st_size for file in static.iterdir()) < 60_000


def test_vietnamese_whatever_the_browser_says(browser, db):
    answer = browser.get("/login/", headers={"Accept-Language": "en-GB,en"})
    assert answer["Content-Language"] == "vi"
    page = answer.content.decode()
    assert '<html lang="vi">' in page
    assert "Đăng nhập" in page
    assert "Sign in" not in page


def test_english_by_a_link_that_is_remembered(browser, db):
    assert 'href="?next=%2Fx&amp;lang=en"' in browser.get("/login/?next=/x").content.decode()
    assert "Sign in" in browser.get("/login/?lang=en").content.decode()
    assert "Sign in" in browser.get("/login/").content.decode()
    assert "Đăng nhập" in browser.get("/login/?lang=vi").content.decode()
    assert "Đăng nhập" in browser.get("/login/").content.decode()
    assert browser.get("/login/?lang=xx")["Content-Language"] == "vi"
    assert browser.get("/login/?lang=../../etc")["Content-Language"] == "vi"


def test_app_hears_its_language(db):
    answer = Client().post(
        "/_allauth/app/v1/auth/login?lang=en",
        {"username": "1", "password": "2"},
        content_type="application/json",
    )
    assert "not right" in answer.json()["errors"][0]["message"]


def test_sign_in_says_how_to_get_a_password(browser, db):
    page = browser.get("/login/").content.decode()
    assert 'href="sms:8079?body=BH%20MK%20"' in page
    assert "Ví dụ: <b>BH MK</b> 0123456789" in page
    for attributes in ['autocomplete="username webauthn"', 'autocomplete="current-password"']:
        assert attributes in page
    assert "inputmode" not in page  # phones must be able to type the letters of a card


def test_new_password_is_readable_without_javascript(browser, citizen, open_case):
    sign_in(browser, citizen.code, open_case().password)
    page = browser.post("/choose-password/", {"new_password": "ngắn"}).content.decode()
    assert 'Mã số BHXH: <b class="code">0012345678</b>' in page
    field = re.search(r'<input[^>]*name="new_password"[^>]*>', page)[0]
    assert 'type="text"' in field
    assert "ngắn" not in page


def test_wrong_password_is_told_at_the_top_and_beside_the_field(browser, citizen, open_case):
    page = sign_in(browser, citizen.code, wrong(open_case())).content.decode()
    assert "<title>Lỗi: Đăng nhập" in page
    assert page.count("Mã số BHXH hoặc mật khẩu chưa đúng.") == 2
    assert 'aria-invalid="true"' in page
    assert 'aria-describedby="id_password_helptext id_password_error"' in page
    assert f'value="{citizen.code}"' in page


def test_next_leads_to_our_own_pages_only(citizen, login):
    def after(target: str) -> str:
        return sign_in(Client(), citizen.code, CHOSEN, QUERY_STRING=f"next={target}")["Location"]

    assert after("/records/") == "/records/"
    assert after("https://evil.example/") == "/"
    assert after("//evil.example/") == "/"


def test_choose_page_of_a_case_that_ended(browser, citizen, open_case):
    sign_in(browser, citizen.code, open_case().password)
    assert browser.get("/choose-password/").status_code == 200
    Case.objects.update(ended_at=timezone.now(), ended_as="reported")
    answer = browser.get("/choose-password/", follow=True)
    assert answer.redirect_chain == [("/login/", 302)]
    assert "Đã hết thời gian đặt mật khẩu" in answer.content.decode()


def test_choose_form_of_a_case_that_ended(browser, citizen, open_case):
    sign_in(browser, citizen.code, open_case().password)
    Case.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    answer = browser.post("/choose-password/", {"new_password": CHOSEN}, follow=True)
    assert answer.redirect_chain == [("/login/", 302)]
    assert "Đã hết thời gian đặt mật khẩu" in answer.content.decode()
    assert not is_in(browser)


def test_sign_out(browser, citizen, login, open_case):
    sign_in(browser, citizen.code, CHOSEN)
    assert browser.get("/logout/")["Location"] == "/"
    assert is_in(browser)
    assert "Bạn đã đăng xuất" in browser.post("/logout/", follow=True).content.decode()
    assert not is_in(browser)
    sign_in(browser, citizen.code, open_case().password)
    browser.post("/logout/")
    assert browser.get("/choose-password/")["Location"] == "/login/"


def test_form_from_an_old_tab(citizen, login):
    strict = Client(enforce_csrf_checks=True)
    answer = sign_in(strict, citizen.code, CHOSEN)
    assert answer.status_code == 403
    assert "Trang này đã mở quá lâu" in answer.content.decode()


def test_pages_that_fail(browser, db, monkeypatch):
    answer = browser.get("/nowhere")
    assert answer.status_code == 404
    assert "Không có trang này" in answer.content.decode()
    monkeypatch.setattr("caplai.signin.views.SignIn.get_context_data", lambda *_, **__: 1 / 0)
    browser.raise_request_exception = False
    answer = browser.get("/login/")
    assert answer.status_code == 500
    assert "Có lỗi xảy ra" in answer.content.decode()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"username": 1, "password": [2]}',
    b'{"username": "\\u0000", "password": "\\u0000"}', b'{"username": "\\ud800", "password": "\\ud800"}',
    b'{"username": null}', b'{"username": "' + b"9" * 100_000 + b'", "password": "x"}'])  # fmt: skip
def test_app_that_sends_nonsense(db, body):
    answer = Client().post("/_allauth/app/v1/auth/login", body, content_type="application/json")
    assert answer.status_code == 400


def test_character_that_no_form_takes_is_told_in_vietnamese(browser, db):
    page = sign_in(browser, "1\0", "2\0").content.decode()
    assert page.count("Có ký tự không dùng được.") == 4


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [(method, path, allowed)
     for path, allowed in [("config", "GET"), ("auth/session", "GET, DELETE"), ("auth/login", "POST"),
                           ("auth/choose_password", "GET, POST")]
     for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] if method not in allowed],
)  # fmt: skip
def test_app_endpoints_take_their_own_methods_only(app, citizen, login, open_case, method, path, allowed):
    app.sign_in(citizen.code, open_case().password)
    body = {"username": citizen.code, "password": "wrong", "new_password": CHOSEN}
    answer = app.call(method, path, body)
    assert (answer.status_code, answer["Allow"]) == (405, allowed)
    assert not Guess.objects.exists()
    assert Case.objects.get().ended_at is None


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_app_endpoints_take_json_only(citizen, login, kind):
    body = json.dumps({"username": citizen.code, "password": "wrong"})
    answer = Client().generic("POST", f"{API}auth/login", body, content_type=kind)
    assert answer.status_code == 415
    assert not Guess.objects.exists()
    kind = "Application/JSON; charset=utf-8"
    assert Client().generic("POST", f"{API}auth/login", body, content_type=kind).status_code == 400
    assert Guess.objects.count() == 1


def test_bad_requests_are_answered_in_vietnamese_and_not_logged(browser, citizen, login, settings, caplog):
    settings.ALLOWED_HOSTS = ["caplai.example"]
    foreign = browser.get("/login/", headers={"host": "evil.example"})
    settings.ALLOWED_HOSTS = ["*"]
    big = browser.post("/login/", {"username": "9" * 3_000_000})
    for answer in (foreign, big):
        assert answer.status_code == 400
        assert "Không thực hiện được yêu cầu này" in answer.content.decode()
    strict = Client(enforce_csrf_checks=True)
    unread = strict.post("/report/x/", "x=" + "9" * 3_000_000, "application/x-www-form-urlencoded")
    assert unread.status_code == 403
    for answer in (foreign, big, unread):
        assert answer["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert answer["Cache-Control"] == "no-store"
    assert sign_in(Client(enforce_csrf_checks=True), citizen.code, CHOSEN).status_code == 403
    assert {record.name for record in caplog.records} <= {"caplai.http"}


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://[::1]", "[::1]"),
        ("https://[::1]:8443", "[::1]"),
        ("https://caplai.example", "caplai.example"),
        ("http://127.0.0.1:8000/", "127.0.0.1"),
    ],
)
def test_only_our_own_name_is_answered(url, host):
    code = "from caplai import settings; print(*settings.ALLOWED_HOSTS)"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CAPLAI_PUBLIC_URL": url},
        capture_output=True,
        text=True,
    )
    assert told.stdout.strip() == host


@pytest.mark.parametrize("token", ["", "x" * 500, "Ð", "'; drop table"])
def test_tokens_that_nobody_gave_out(citizen, login, token):
    strange = App()
    strange.device = token
    assert strange.sign_in(citizen.code, CHOSEN).status_code == 200
    assert strange.device != token
    strange.session = token or "none"
    assert strange.call("GET", "auth/session").status_code == 410
    cookie = Client()
    cookie.cookies["caplai_session"] = token
    assert not is_in(cookie)


def test_cookies(browser, citizen, login, settings):
    settings.SESSION_COOKIE_SECURE = True
    cookies = sign_in(browser, citizen.code, CHOSEN).cookies
    for name in ["caplai_session", "caplai_device"]:
        cookie = cookies[name]
        assert cookie["httponly"]
        assert cookie["secure"]
        assert cookie["samesite"] == "Lax"
    assert int(cookies["caplai_device"]["max-age"]) == 31_536_000


def test_device_is_kept(browser, citizen, login):
    token = sign_in(browser, citizen.code, CHOSEN).cookies["caplai_device"].value
    browser.post("/logout/")
    assert sign_in(browser, citizen.code, CHOSEN).cookies["caplai_device"].value == token


def test_no_session_key_is_stored(browser, app, citizen, login, open_case):
    pending = App()
    pending.sign_in(citizen.code, open_case().password)
    sign_in(browser, citizen.code, CHOSEN)
    app.sign_in(citizen.code, CHOSEN)
    keys = {pending.session, app.session, browser.cookies["caplai_session"].value}
    assert len(keys) == 3
    assert all(citizen.code not in str(row.get_decoded()) for row in Session.objects.all())
    assert Session.objects.count() == 3
    for row in Session.objects.all():
        for key in keys:
            assert key not in row.session_key
            assert key not in str(row.get_decoded())


def test_no_secret_and_no_code_in_the_logs(browser, app, citizen, login, open_case, caplog):
    with caplog.at_level("DEBUG"), caplog.at_level("DEBUG", "django.request"):
        opened = open_case()
        sign_in(browser, citizen.code, wrong(opened))
        sign_in(browser, citizen.code, opened.password)
        browser.post("/choose-password/", {"new_password": "short"})
        browser.post("/choose-password/", {"new_password": "một mật khẩu khác"})
        app.sign_in(citizen.code, CHOSEN)
        app.sign_in(citizen.code, "một mật khẩu khác")
        browser.raise_request_exception = False
        browser.get(f"/{citizen.code[:3]}/nowhere")
    # Django's own SQL log is for developers: it speaks only with DEBUG.
    lines = "\n".join(
        f"{record.getMessage()} {record.args}"
        for record in caplog.records
        if not record.name.startswith("django.db")
    )
    assert "/login" in lines
    secrets = [citizen.code, opened.password, wrong(opened), CHOSEN, "một mật khẩu khác", citizen.phone, "127.0.0.1",
               app.session, app.device, browser.cookies["caplai_session"].value]  # fmt: skip
    for secret in secrets:
        assert secret not in lines


# --- proxies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.7", "203.0.113.9", "198.51.100.7"),  # no proxy of ours: it may write what it likes
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),
        ("10.0.0.1", "1.1.1.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
    ],
)
def test_client_behind_proxies(settings, peer, forwarded, client):
    settings.CAPLAI = Config(trusted_proxies=["10.0.0.0/8"])
    request = RequestFactory().get(
        "/", REMOTE_ADDR=peer, headers={"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}
    )
    TrustedProxy(lambda request: request)(request)
    assert request.META["REMOTE_ADDR"] == client
    assert request.is_secure() is (peer != "198.51.100.7")
    assert "X-Forwarded-For" not in request.headers


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "unknown"),
    ],
)
def test_network_of_an_address(address, name):
    assert network(RequestFactory().get("/", REMOTE_ADDR=address)) == name


# --- the translation -----------------------------------------------------------------------------------


def catalog():
    with open(LOCALE / "django.po", "rb") as file:
        return read_po(file)


def _plain(message) -> str | tuple:
    """An id of a catalog; one with a plural as a pair."""
    return message.id if isinstance(message.id, str) else tuple(message.id)


def test_compiled_catalog_is_that_of_the_source():
    with open(LOCALE / "django.mo", "rb") as file:
        compiled = {_plain(one): list(one.string) for one in read_mo(file) if one.id}
    assert compiled == {_plain(one): list(one.string) for one in catalog() if one.id}


def test_every_text_is_translated_and_every_translation_used():
    used = _of_templates() | _of_python()
    translated = {message.id: message.string for message in catalog() if message.id}
    assert used == set(translated)
    assert all(translated.values())
    for source, text in translated.items():
        for one, its in ((source, text),) if isinstance(source, str) else zip(source, text * 2, strict=True):
            assert re.findall(r"%\(\w+\)s", one) == re.findall(r"%\(\w+\)s", its)


ONE_WORD_FOR_ONE_THING = {
    r"mã xác nhận|mã trong thư": "mã xác thực",
    r"(?<!ngừng )liên kết": "đường dẫn",
    r"\bthư\b(?! rác)": "email",
    r"\bgỡ\b": "xóa",
    r"giấy tờ tùy thân|(?<!thẻ )căn cước": "thẻ căn cước",
    r"chọn (một )?mật khẩu": "đặt mật khẩu",
    r"\bxin (?!mã|lỗi|chờ|cấp)": "hãy",
    r"(?<!số )điện thoại (đã )?đăng ký": "số điện thoại …",
}
"""What is not said → what is."""


def test_one_word_for_one_thing():
    texts = [
        text for one in catalog() for text in ((one.string,) if isinstance(one.string, str) else one.string)
    ]
    pages = [
        *PACKAGE.rglob("templates/**/*.html"),
        PACKAGE / "locale_others" / "vi" / "LC_MESSAGES" / "django.po",
    ]
    texts += [file.read_text() for file in pages]
    for text in texts:
        for not_this, right in ONE_WORD_FOR_ONE_THING.items():
            found = re.search(not_this, text, re.I)
            assert not found, f"“{found and found[0]}” is “{right}”: {text}"


def _of_python() -> set[str | tuple[str, str]]:
    """A text with a plural is both, as a pair."""
    found: set[str | tuple[str, str]] = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and (name := getattr(node.func, "id", "")) in ("_", "ngettext"):
                words = node.args[: 2 if name == "ngettext" else 1]
                assert all(isinstance(one, ast.Constant) for one in words), f"{file}: {ast.unparse(node)}"
                said = tuple(one.value for one in words)
                found.add(said if name == "ngettext" else said[0])
    return found


def _of_templates() -> set[str | tuple[str, str]]:
    found: set[str | tuple[str, str]] = set()
    for file in PACKAGE.rglob("templates/**/*.html"):
        template = Template(file.read_text(), engine=engines["django"].engine)
        for node in template.nodelist.get_nodes_by_type(object):
            match type(node).__name__:
                case "TranslateNode":
                    found.add(node.filter_expression.var.literal or str(node.filter_expression.var))
                case "BlockTranslateNode":
                    said = tuple(
                        node.render_token_list(one)[0] for one in (node.singular, node.plural) if one
                    )
                    found.add(said if node.plural else said[0])
    return found
