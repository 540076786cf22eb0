"""My account: the first page, changing the password, devices, what happened; by page and by app."""

import json
import re
import uuid
from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connection
from django.db.models import F
from django.test import Client
from django.utils import timezone

from caplai.domain.issuing import Inputs, derive
from caplai.service import credentials
from caplai.service.reissue import reissue_inbox
from caplai.store.models import (
    Address,
    Case,
    Device,
    Event,
    Guess,
    Inbox,
    Login,
    Recovery,
    Sitting,
    TakenOverPassword,
)
from tests.signin.conftest import CHOSEN, App, is_in, sign_in
from tests.signin.test_sittings import ANDROID

NEW = "bà ngoại nấu phở"


@pytest.fixture
def signed_in(browser, citizen, login) -> Client:
    sign_in(browser, citizen.code, CHOSEN, headers={"User-Agent": ANDROID})
    return browser


def change(client: Client, current: str, new: str = NEW, **extra):
    return client.post("/account/password/", {"current_password": current, "new_password": new}, **extra)


def text_of(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200
    main = re.search(r"<main.*?</main>", answer.content.decode(), re.DOTALL)[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", main))


# --- the first page ------------------------------------------------------------------------------------


def test_first_page(signed_in, citizen):
    page = text_of(signed_in, "/")
    for shown in ("0012345678", "0327xxx686", "lan@example.vn", "đã đặt", "chỉ đăng nhập trên thiết bị này",
                  "Chrome trên Android, bằng mật khẩu."):  # fmt: skip
        assert shown in page
    assert citizen.phone not in page and "327000686" not in page
    assert "vừa được cấp lại" not in page


def test_after_a_re_issue_it_lists_what_was_there_before(browser, citizen, open_case):
    added = timezone.now() - timedelta(minutes=10)
    Address.objects.create(account=citizen.code, email="ai@example.vn", confirmed_at=added)
    sign_in(browser, citizen.code, open_case().password)
    browser.post("/choose-password/", {"new_password": CHOSEN})
    until = timezone.localtime(Case.objects.get().ended_at + timedelta(hours=24)).strftime("%H:%M %d/%m/%Y")
    page = text_of(browser, "/")
    assert "Mật khẩu vừa được cấp lại" in page
    assert f"chỉ xóa được sau {until} : Email: lan@example.vn , đã đăng ký tại cơ quan BHXH" in page
    at = timezone.localtime(added).strftime("%H:%M %d/%m/%Y")
    assert f"ai@example.vn , thêm lúc {at} Có mục nào không phải của bạn? Không phải tôi" in page
    app = App()
    app.sign_in(citizen.code, CHOSEN)
    kept = app.call("GET", "account/").json()["data"]["after_reissue"]["kept"]
    assert [(one["name"], one["since"]) for one in kept] == [
        ("lan@example.vn", None),
        ("ai@example.vn", added.isoformat()),
    ]
    Case.objects.update(ended_at=timezone.now() - timedelta(hours=25))
    assert "vừa được cấp lại" not in text_of(browser, "/")


UNASKED = "Bạn có yêu cầu cấp mật khẩu mới không?"


def put_away(client: Client):
    [until] = re.findall(r'name="until" value="([^"]+)"', client.get("/").content.decode())
    return client.post("/account/read/", {"until": until})


def test_a_device_that_is_signed_in_and_the_next_sign_in_are_told_of_a_re_issue(
    signed_in, app, citizen, open_case
):
    Event.objects.update(at=timezone.now() - timedelta(days=4))
    Sitting.objects.update(created_at=timezone.now() - timedelta(days=4))
    assert UNASKED not in text_of(signed_in, "/")
    case = open_case().case
    Case.objects.update(opened_at=timezone.now() - timedelta(days=2), texts=2)
    at = timezone.localtime(Case.objects.get().opened_at).strftime("%H:%M %d/%m/%Y")
    told = f"{at} : Cấp lại mật khẩu bằng tin nhắn. Mật khẩu đã gửi tới số 0327xxx686, 2 lần."
    page = text_of(signed_in, "/")
    assert UNASKED in page and told in page and "Không phải tôi" in page
    assert 'href="/account/report/"' in signed_in.get("/").content.decode()

    later = Client()
    sign_in(later, citizen.code, CHOSEN)
    assert told in text_of(later, "/")
    Case.objects.update(ended_at=timezone.now(), ended_as="expired")  # that nobody used it changes nothing
    assert UNASKED in text_of(later, "/") and UNASKED in text_of(signed_in, "/")
    assert put_away(later)["Location"] == "/"
    assert UNASKED not in text_of(later, "/")
    assert UNASKED in text_of(signed_in, "/")  # who has put it away has done so for itself alone
    Event.objects.filter(kind="signed_in").order_by("-at").first().delete()
    app.sign_in(citizen.code, CHOSEN)
    [unasked] = app.call("GET", "account/").json()["data"]["unasked_reissues"]
    assert (unasked["channel"], unasked["state"], unasked["title"]) == (
        "sms", "expired", "Cấp lại mật khẩu bằng tin nhắn"
    )  # fmt: skip
    for no_time in ("", "x", "2026-11-23", "9" * 50, 7, {}, "2026-11-23T10:00:00\0"):
        assert app.call("POST", "account/read", {"until": no_time}).status_code == 400
        assert signed_in.post("/account/read/", {"until": no_time})["Location"] == "/"
    assert app.call("POST", "account/read", {"until": unasked["at"]}).json()["data"] == []
    assert app.call("GET", "account/").json()["data"]["unasked_reissues"] == []
    Event.objects.update(at=F("at") - timedelta(seconds=2))  # nobody signs in twice within a second
    after_it = Client()
    sign_in(after_it, citizen.code, CHOSEN)
    assert UNASKED not in text_of(after_it, "/")  # it was opened before the sign-in before this one

    open_case()
    assert UNASKED in text_of(later, "/")  # a new one is new
    assert app.call("POST", "account/read", {"until": "9999-12-31T23:59:59-23:59"}).json()["data"] == []
    assert case.id != open_case_again(citizen, open_case).id
    assert app.call("GET", "account/").json()["data"]["unasked_reissues"] != []


def open_case_again(citizen, open_case):
    Case.objects.filter(ended_at=None).update(ended_at=timezone.now(), ended_as="expired")
    return open_case().case


@pytest.mark.parametrize("how", ["used", "reported", "old"])
def test_of_what_is_used_reported_or_old_nobody_is_asked(signed_in, open_case, how):
    open_case()
    assert UNASKED in text_of(signed_in, "/")
    if how == "old":
        Case.objects.update(opened_at=timezone.now() - timedelta(days=31))
        Event.objects.update(at=timezone.now() - timedelta(days=60))
    else:
        Case.objects.update(ended_at=timezone.now(), ended_as=how)
    assert UNASKED not in text_of(signed_in, "/")


def test_an_operator_has_no_account(browser, operator):
    sign_in(browser, operator.username, "bảy con cò trắng")
    assert "thu.ha" in text_of(browser, "/")
    for path in ("/account/password/", "/account/devices/", "/account/history/"):
        assert browser.get(path)["Location"] == "/"


def test_nobody_is_led_to_the_sign_in(browser, db):
    for path in ("/account/password/", "/account/devices/", "/account/history/"):
        assert browser.get(path)["Location"] == f"/login/?next={path}"
    for path in ("/account/devices/end/", "/account/devices/others/"):
        assert browser.post(path)["Location"].startswith("/login/")
        assert browser.get(path).status_code == 405


# --- the password --------------------------------------------------------------------------------------


def test_a_new_password_ends_everything_else(signed_in, app, citizen, login):
    other = Client()
    sign_in(other, citizen.code, CHOSEN)
    app.sign_in(citizen.code, CHOSEN)
    TakenOverPassword.objects.create(code=citizen.code, hash="x")
    was = signed_in.cookies["caplai_session"].value

    assert change(signed_in, CHOSEN)["Location"] == "/"
    assert "Đã lưu mật khẩu mới" in signed_in.get("/").content.decode()
    assert signed_in.cookies["caplai_session"].value != was
    assert not is_in(other) and not app.is_in
    login = Login.objects.get()
    assert login.check_password(NEW)
    assert Device.objects.count() == Sitting.objects.count() == Session.objects.count() == 1
    assert not TakenOverPassword.objects.exists()
    assert not Guess.objects.exists()
    assert Event.objects.filter(kind="password_changed", login_id=login.pk, data={}).count() == 1
    stolen = Client()
    stolen.cookies["caplai_session"] = was
    assert not is_in(stolen)
    assert sign_in(Client(), citizen.code, CHOSEN).status_code == 200
    assert sign_in(Client(), citizen.code, NEW).status_code == 302


def test_a_wrong_current_password_is_a_guess_of_this_device(signed_in, citizen, login):
    answer = change(signed_in, "not it")
    assert answer.status_code == 200
    page = answer.content.decode()
    assert page.count("Đây không phải mật khẩu bạn đang dùng.") == 2
    assert "<title>Lỗi: " in page
    assert "not it" not in page and NEW not in page
    assert Guess.objects.get().device == Device.objects.get().pk
    assert Login.objects.get().check_password(CHOSEN)
    assert is_in(signed_in)


def test_it_is_throttled_as_the_sign_in_is(signed_in, login, settings):
    at_most = settings.CAPLAI.signin.model_copy(update={"guesses": 2, "network_failures": 3})
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"signin": at_most})
    for _ in range(3):
        assert change(signed_in, "not it").status_code == 200
    answer = change(signed_in, CHOSEN)
    assert answer.status_code == 429
    assert 0 < int(answer["Retry-After"]) <= 601
    assert "nhập sai quá nhiều lần" in answer.content.decode()
    assert Guess.objects.count() == 3
    assert Login.objects.get().check_password(CHOSEN)


def test_the_issued_password_is_not_the_current_one(signed_in, citizen, open_case):
    page = change(signed_in, open_case().password).content.decode()
    assert "Đây là mật khẩu trong tin nhắn." in page
    assert Case.objects.get().ended_at is None
    assert Login.objects.get().check_password(CHOSEN)


@pytest.mark.parametrize("new", ["ngắn", "0012345678", "password1", "bhxh2026"])
def test_the_rules_are_those_of_choosing(signed_in, new):
    assert change(signed_in, CHOSEN, new).status_code == 200
    assert Login.objects.get().check_password(CHOSEN)
    assert not Guess.objects.exists()


def test_changed_elsewhere_meanwhile(signed_in, login, monkeypatch):
    real = credentials.check

    def check(*args, **kwargs):
        checked = real(*args, **kwargs)
        Login.objects.update(stamp="changed")
        return checked

    monkeypatch.setattr(credentials, "check", check)
    assert change(signed_in, CHOSEN)["Location"] == "/login/"
    assert Login.objects.get().check_password(CHOSEN)


def test_who_has_only_a_passkey_gives_it_a_password_after_a_fresh_sign_in(signed_in, citizen):
    login = Login.objects.get()
    login.password = "!"
    login.save()
    page = signed_in.get("/account/password/")
    assert page.status_code == 200
    assert "current_password" not in page.content.decode()
    session = signed_in.session
    session["account_authentication_methods"][-1]["at"] -= 16 * 60
    session.save()
    assert signed_in.get("/account/password/").status_code == 403
    assert signed_in.post("/account/password/", {"new_password": NEW}).status_code == 403
    session["account_authentication_methods"][-1]["at"] += 16 * 60
    session.save()
    assert signed_in.post("/account/password/", {"new_password": NEW})["Location"] == "/"
    assert Login.objects.get().check_password(NEW)
    assert is_in(signed_in)


# --- devices -------------------------------------------------------------------------------------------


def test_devices(signed_in, citizen, login):
    other = Client()
    sign_in(
        other, citizen.code, CHOSEN, headers={"User-Agent": "Mozilla/5.0 (Windows NT 10.0) Firefox/120.0"}
    )
    page = text_of(signed_in, "/account/devices/")
    assert "Chrome trên Android (thiết bị này)" in page
    assert "Firefox trên Windows" in page
    assert "127.0.0.1" not in page
    [seat] = re.findall(r'name="seat" value="(\w+)"', signed_in.get("/account/devices/").content.decode())
    answer = signed_in.post("/account/devices/end/", {"seat": seat}, follow=True)
    assert "Đã đăng xuất và bỏ ghi nhớ" in answer.content.decode()
    assert not is_in(other)
    assert is_in(signed_in)
    assert "Firefox" not in text_of(signed_in, "/account/devices/")


def test_everywhere_else(signed_in, app, citizen, login):
    app.sign_in(citizen.code, CHOSEN)
    was = signed_in.cookies["caplai_session"].value
    assert signed_in.post("/account/devices/others/")["Location"] == "/account/devices/"
    assert is_in(signed_in)
    assert signed_in.cookies["caplai_session"].value != was
    assert not app.is_in
    assert Device.objects.count() == 1
    assert Event.objects.get(kind="signed_out_elsewhere").data == {}


# --- what happened -------------------------------------------------------------------------------------


def test_a_story(transactional_db, conn, rules, browser, citizen):
    """Re-issue by text, twice; a stranger's text; a wrong password, a chosen one; a sign-in; a changed one."""
    for text, source in [(f"BH MK {citizen.code}", "84327000686"), (f"BH MK {citizen.code}", "0327000686"),
                         (f"BH MK {citizen.code}", "84911111111"), ("BH MK 0099999999", "84327000686")]:  # fmt: skip
        Inbox.objects.create(
            link="viettel", source=source, destination="8079", text=text, received_at=timezone.now()
        )
        reissue_inbox(conn, rules, 10)
    case = Case.objects.get()
    issued = derive(
        settings.KEYRING.ring("issuing").keys[case.key],
        Inputs(case.version, case.id, citizen.code, case.length, case.alphabet),
    )
    sign_in(browser, citizen.code, "not it")
    sign_in(browser, citizen.code, issued)
    browser.post("/choose-password/", {"new_password": CHOSEN}, headers={"User-Agent": ANDROID})
    change(browser, CHOSEN)
    sign_in(Client(), citizen.code, "not it")
    sign_in(Client(), citizen.code, "not it")

    page = text_of(browser, "/account/history/")
    told = ["Có người nhập sai mật khẩu Số lần trong ngày: 2.", "Mật khẩu đã được đổi", "Đăng nhập Chrome trên Android",
            "Đã đặt mật khẩu mới sau khi cấp lại Trước đó nhập sai mật khẩu: 1 lần.",
            "Đã gửi lại mật khẩu đó Từ số điện thoại 0327xxx686.",
            "Cấp lại mật khẩu bằng tin nhắn Mật khẩu đã gửi tới số 0327xxx686, 2 lần. Đã được dùng lúc"]  # fmt: skip
    places = [page.find(one) for one in told]
    assert -1 not in places and places == sorted(places), [*zip(told, places, strict=True), page]
    assert page.count("0327xxx686") == 2
    for secret in ("911111111", "327000686", issued, "not it", CHOSEN, NEW, citizen.code):
        assert secret not in page


def test_pages_leave_nothing_out_and_repeat_nothing(signed_in, login):
    now = timezone.now()
    Event.objects.bulk_create(
        Event(
            kind="signed_in",
            login_id=login.pk,
            at=now - timedelta(minutes=n // 3),
            data={"client": f"x{n}/y"},
        )
        for n in range(65)
    )
    Event.objects.create(kind="signed_in", login_id=login.pk + 1, at=now)
    Event.objects.create(kind="service_opened", login_id=login.pk, at=now)
    seen, before = [], ""
    while True:
        page = signed_in.get(f"/account/history/{before}").content.decode()
        times = re.findall(r'<time[^>]* datetime="([^"]+)"', page)
        assert len(times) <= 22
        seen += times
        if not (older := re.search(r'href="(\?before=\d+)"', page)):
            break
        before = older[1]
    assert len(seen) == 66
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("before", ["", "x", "-1", "9" * 40, "٣", "0", "1e9", "9" * 16])
def test_any_place_to_go_on_from(signed_in, before):
    assert signed_in.get("/account/history/", {"before": before}).status_code == 200


_FILLED = """
insert into event (kind, login_id, data) select 'signed_in', 1000 + n, '{}' from generate_series(1, 5000) n;
insert into inbox (link, source, destination, text, outcome)
  select 'v', n::text, '8079', '', 'joined' from generate_series(1, 5000) n;
insert into guess (account, network) select lpad(n::text, 10, '0'), '' from generate_series(1, 5000) n;
insert into reissue_case (account, id, phone, channel, key, version, length, alphabet, texts, opened_at, expires_at)
  select lpad(n::text, 10, '0'), gen_random_uuid(), '', 'sms', '', 1, 6, '', 1, now(), now()
  from generate_series(1, 5000) n;
insert into recovery
  (id, code, channel, network, prefix, secret_hash, key, version, created_at, expires_at, asked_at)
  select gen_random_uuid(), lpad(n::text, 10, '0'), 'sms', '', '', decode(md5(n::text), 'hex'), '', 1, now(), now(),
    now()
  from generate_series(1, 5000) n;
analyze event, inbox, guess, reissue_case, recovery
"""


@pytest.mark.parametrize("path", ["/account/history/", "/"])
def test_pages_are_read_by_index(signed_in, login, path):
    """On tables that are worth an index, no source of a page reads one from end to end."""
    scans = "select relname, seq_tup_read from pg_stat_xact_user_tables where relname = any(%s)"
    tables = ["event", "inbox", "guess", "reissue_case", "recovery"]
    with connection.cursor() as cursor:
        cursor.execute(_FILLED)
        cursor.execute(scans, [tables])
        before = dict(cursor.fetchall())
        assert signed_in.get(path).status_code == 200
        cursor.execute(scans, [tables])
        read = {name: tuples - before[name] for name, tuples in cursor.fetchall()}
    assert read == dict.fromkeys(tables, 0)


# --- the app -------------------------------------------------------------------------------------------


def test_app_sees_the_account(app, citizen, login):
    assert app.call("GET", "account/").status_code == 401
    app.sign_in(citizen.code, CHOSEN)
    data = app.call("GET", "account/").json()["data"]
    assert data["phone"] == "0327xxx686" and data["emails"] == ["lan@example.vn"]
    assert data["after_reissue"] is None and data["has_password"] is True


def test_app_changes_the_password(app, citizen, login):
    app.sign_in(citizen.code, CHOSEN)
    was = app.session
    wrong = app.call("POST", "account/password", {"current_password": "not it", "new_password": NEW})
    assert wrong.status_code == 400
    assert [(error["code"], error["param"]) for error in wrong.json()["errors"]] == [
        ("password_is_wrong", "current_password")
    ]
    assert (
        app.call("POST", "account/password", {"current_password": CHOSEN, "new_password": "ngắn"}).status_code
        == 400
    )
    done = app.call("POST", "account/password", {"current_password": CHOSEN, "new_password": NEW})
    assert done.status_code == 200
    assert app.session != was
    assert app.is_in
    assert Login.objects.get().check_password(NEW)


def test_app_sees_and_ends_devices(app, citizen, login):
    phone, tablet = App(), App()
    for one in (phone, tablet, app):
        one.sign_in(citizen.code, CHOSEN)
    seats = app.call("GET", "account/devices").json()["data"]
    assert [seat["here"] for seat in seats] == [True, False, False]
    assert app.call("DELETE", f"account/devices/{seats[0]['id']}").status_code == 404
    assert app.call("DELETE", f"account/devices/{seats[1]['id']}").status_code == 200
    assert app.call("DELETE", f"account/devices/{seats[1]['id']}").status_code == 404
    assert [phone.is_in, tablet.is_in] == [True, False]
    was = app.session
    assert app.call("DELETE", "account/devices").status_code == 200
    assert app.session != was
    assert app.is_in and not phone.is_in


def test_app_reads_what_happened(app, citizen, login):
    app.sign_in(citizen.code, CHOSEN)
    answer = app.call("GET", "account/history").json()
    [entry] = answer["data"]
    assert (entry["what"], entry["client"], entry["how"]) == ("signed_in", "app/other", "password")
    assert answer["meta"] == {"older": None}
    assert citizen.code not in json.dumps(answer)


def test_nothing_of_a_person_in_events_and_logs(signed_in, citizen, login, caplog):
    with caplog.at_level("DEBUG"):
        change(signed_in, "not it")
        change(signed_in, CHOSEN)
        signed_in.get("/account/history/")
        signed_in.post("/account/devices/others/")
    lines = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith("django.db")
    )
    written = json.dumps([*Event.objects.values("kind", "data")])
    for secret in (
        citizen.code,
        "327000686",
        "not it",
        CHOSEN,
        NEW,
        signed_in.cookies["caplai_session"].value,
    ):
        assert secret not in written and secret not in lines


def test_a_code_that_somebody_asked_for_is_told(signed_in, citizen):
    """By page: the one-time code; of whoever asked there is nothing to tell."""
    now = timezone.now()
    common = {"code": citizen.code, "channel": "sms", "network": "203.0.113.9", "prefix": "", "key": "k", "version": 1,
              "expires_at": now, "asked_at": now}  # fmt: skip
    for number, (phone, rest) in enumerate(
        [
            (citizen.phone, {"tries": 3}),
            (None, {}),
            (citizen.phone, {"proved_at": now, "outcome": "held"}),
            (citizen.phone, {"proved_at": now, "outcome": "issued"}),
        ]
    ):
        at = now - timedelta(minutes=number)
        row = {**common, "id": uuid.uuid4(), "secret_hash": bytes([number]), "created_at": at, "phone": phone}
        Recovery.objects.create(**row, **rest)
    page = text_of(signed_in, "/account/history/")
    told = ["Mã đã gửi tới số 0327xxx686. Nhập sai mã 3 lần. Không ai dùng mã đó.", "Không gửi mã nào.",
            "tài khoản đang bị khóa", "Mã đã được nhập đúng."]  # fmt: skip
    places = [page.find(one) for one in told]
    assert -1 not in places and places == sorted(places), page
    assert "203.0.113" not in page
