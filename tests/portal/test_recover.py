"""Quên mật khẩu by page: the way from the code to a new password, and that it is the same way for every code."""

import re
from datetime import datetime, timedelta
from urllib.parse import unquote

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.utils import timezone

from caplai.portal import recover
from caplai.store.models import Account, Case, Guess, Recovery
from tests.portal.forgetting import another, otp_of, read_phone, rules_with
from tests.service.test_forgotten import later
from tests.signin.conftest import App

pytestmark = pytest.mark.django_db(transaction=True)
UNKNOWN = "9999999999"
PASSWORD = "con mèo trèo cây cau"


@pytest.fixture
def use(monkeypatch):
    """Use these rules in the pages."""

    def use(**changes):
        changed = rules_with(**changes)
        monkeypatch.setattr(recover, "rules", lambda: changed)

    use()
    return use


@pytest.fixture
def browser(use) -> Client:
    return Client()


@pytest.fixture
def app(db) -> App:
    return App()


def start(browser, code, follow=True, **extra):
    """Type the code, then choose SMS."""
    ways = browser.post("/recover/", {"code": code}, **extra)
    assert ways.status_code == 200
    return browser.post("/recover/send/", {"code": code}, follow=follow, **extra)


def words(response, code=""):
    """A page without what is drawn for each answer, and without the code that was typed."""
    body = re.sub(r'(?<=name="csrfmiddlewaretoken" value=")[^"]+', "", response.content.decode())
    body = re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL)
    return response.status_code, body.replace(code, "CODE") if code else body


def test_from_the_sign_in_page_to_a_new_password(browser, lan):
    assert 'href="/recover/"' in browser.get("/login/?lang=en").content.decode()
    assert "Social insurance code" in browser.get("/recover/").content.decode()
    ways = browser.post("/recover/", {"code": "012 345 6789"}).content.decode()
    assert 'href="sms:8079?body=BH%20MK%200123456789"' in ways and "<svg" in ways
    page = browser.post("/recover/send/", {"code": lan.code}, follow=True)
    assert page.redirect_chain == [("/recover/otp/", 302)]
    field = re.search(r'<input[^>]*name="otp"[^>]*>', page.content.decode())[0]
    assert 'autocomplete="one-time-code"' in field and 'inputmode="numeric"' in field
    [(_, text)] = read_phone()
    page = browser.post("/recover/otp/", {"otp": otp_of(text)}, follow=True)
    assert page.redirect_chain == [("/recover/done/", 302)]
    assert "Check your phone" in page.content.decode()
    [(_, text)] = read_phone()
    page = browser.post("/login/", {"username": lan.code, "password": text[-6:]}, follow=True)
    assert page.redirect_chain[-1] == ("/choose-password/", 302)
    assert "The password from the message only opens this page." in page.content.decode()
    assert browser.get("/recover/otp/", follow=True).redirect_chain == [("/recover/done/", 302)]  # reloaded


def test_every_code_is_answered_with_the_same_words(use, db):
    Account.objects.create(code="0000000003", phone="+84327000603", state="approved")
    Account.objects.create(code="0000000001", phone="+84327000601", state="pending")
    Account.objects.create(code="0000000002", phone="+84327000602", state="closed", email="a@example.vn")
    seen = set()
    for code in ("0000000001", "0000000002", "0000000003", UNKNOWN):
        Recovery.objects.all().delete()
        browser, heard = Client(), []
        heard.append(words(browser.post("/recover/", {"code": code}), code))
        heard.append(words(browser.post("/recover/send/", {"code": code}, follow=True), code))
        heard.append(words(browser.post("/recover/again/", follow=True), code))
        later(seconds=61)
        heard.append(words(browser.post("/recover/again/", follow=True), code))
        heard += [words(browser.post("/recover/otp/", {"otp": "000000"}), code) for _ in range(4)]
        heard.append(words(browser.get("/recover/otp/"), code))
        heard.append(words(browser.get("/recover/done/", follow=True), code))
        for _ in range(5):
            heard.append(words(start(Client(), code), code))
        seen.add(tuple(heard))
    assert len(seen) == 1
    assert [status for status, _ in seen.pop()] == [200] * 13 + [429] * 2


def test_neither_code_nor_otp_is_in_an_address_or_a_session(browser, lan):
    page = start(browser, lan.code)
    [(_, text)] = read_phone()
    done = browser.post("/recover/otp/", {"otp": otp_of(text)}, follow=True)
    for address, _ in page.redirect_chain + done.redirect_chain:
        assert lan.code not in unquote(address)
    for row in Session.objects.all():
        kept = row.get_decoded()
        assert set(kept) <= {"recovery"}
        assert lan.code not in str(kept) and otp_of(text) not in str(kept)
    with connection.cursor() as cursor:
        cursor.execute("select encode(secret_hash, 'hex') from recovery")
        assert kept["recovery"].encode().hex() not in cursor.fetchone()[0]


def test_nothing_of_it_is_in_the_log(browser, lan, caplog):
    caplog.set_level("DEBUG")
    start(browser, lan.code)
    otp = otp_of(read_phone()[0][1])
    browser.post("/recover/otp/", {"otp": another(otp)})
    browser.post("/recover/otp/", {"otp": otp}, follow=True)
    issued = read_phone()[0][1][-6:]
    assert Case.objects.exists() and caplog.records
    said = " ".join(str(vars(record)) for record in caplog.records if not record.name.startswith("django.db"))
    for secret in (lan.code, lan.phone[3:], otp, another(otp), issued, browser.session["recovery"]):
        assert secret not in said


def test_a_wrong_otp_is_told_beside_its_field_and_at_the_top(browser, lan):
    start(browser, lan.code)
    otp = otp_of(read_phone()[0][1])
    page = browser.post("/recover/otp/?lang=en", {"otp": another(otp)}).content.decode()
    assert page.count("Tries left: 2.") == 2
    assert otp not in page
    browser.post("/recover/otp/", {"otp": another(otp)})
    page = browser.post("/recover/otp/", {"otp": another(otp)}).content.decode()
    assert "Begin again" in page
    page = browser.get("/recover/otp/").content.decode()
    assert "Begin again" in page and 'href="sms:8079?body=BH%20MK%20"' in page
    assert "and your own social insurance code to 8079. For example: " in page
    assert not Case.objects.exists()


@pytest.mark.parametrize("typed", ["12345", "1234567", "12345o", "abcdef", "١٢٣٤٥٦"])
def test_what_is_no_six_digits_is_no_try(browser, lan, typed):
    start(browser, lan.code)
    page = browser.post("/recover/otp/?lang=en", {"otp": typed}, follow=True).content.decode()
    assert page.count("The code has 6 digits.") == 2
    assert Recovery.objects.get().tries == 0 and not Guess.objects.exists()


@pytest.mark.parametrize("form", ["{} {}", " {}-{} ", "{}\u00a0{}"])
def test_digits_may_be_in_groups_or_full_width(browser, lan, form):
    start(browser, lan.code)
    otp = otp_of(read_phone()[0][1])
    typed = form.format(otp[:3], "".join(chr(ord(digit) + 0xFEE0) for digit in otp[3:]))
    page = browser.post("/recover/otp/", {"otp": typed}, follow=True)
    assert "Check your phone" in browser.get("/recover/done/?lang=en").content.decode(), page.content


def test_a_code_that_is_none_is_told_at_once(browser, db):
    page = browser.post("/recover/?lang=en", {"code": "12345"}).content.decode()
    assert page.count("The code has 10 digits.") == 2
    assert browser.post("/recover/send/", {"code": "12345"}).status_code == 302
    assert not Recovery.objects.exists()


def test_busy_and_too_many_offer_the_text(use, browser, lan):
    use(budgets={"site_hour": 0})
    page = start(browser, lan.code, follow=False)
    assert page.status_code == 429 and page["Retry-After"]
    assert f"sms:8079?body=BH%20MK%20{lan.code}" in page.content.decode()
    use(budgets={"code_day": 0})
    assert start(browser, UNKNOWN, follow=False).status_code == 429


def test_the_free_limit_is_told_after_the_proof_with_the_other_way(use, browser, lan):
    use()
    for _ in range(2):
        start(browser, lan.code)
        browser.post("/recover/otp/", {"otp": otp_of(read_phone()[0][1])})
        read_phone()
        Case.objects.update(ended_at="2026-01-01T00:00Z", ended_as="used")
    start(browser, lan.code)
    page = browser.post("/recover/otp/?lang=en", {"otp": otp_of(read_phone()[0][1])}, follow=True)
    assert "No more free ones for now" in page.content.decode()
    assert f'href="sms:8079?body=BH%20MK%20{lan.code}"' in page.content.decode()
    assert f'text <span class="code">BH MK {lan.code}</span> to 8079' in page.content.decode()


def test_where_the_agency_wants_it_a_password_is_chosen_on_the_spot(use, browser, lan):
    use(choose_at_once=True)
    start(browser, lan.code)
    page = browser.post("/recover/otp/?lang=en", {"otp": otp_of(read_phone()[0][1])}, follow=True)
    assert page.redirect_chain == [("/choose-password/", 302)]
    page = browser.get("/recover/done/", follow=True)
    assert page.redirect_chain == [("/choose-password/", 302)]
    assert "Set a password that you will use from now on." in page.content.decode()
    assert "the message" not in page.content.decode() and "sms:8079" not in page.content.decode()
    page = browser.post("/choose-password/", {"new_password": PASSWORD}, follow=True)
    assert lan.code in page.content.decode() and read_phone() == []
    assert Client().post("/login/", {"username": lan.code, "password": PASSWORD}).status_code == 302
    late = browser.get("/recover/done/?lang=en").content.decode()
    assert "<h1>Set a new password</h1>" in late and "your registered phone" not in late
    assert Case.objects.get().ended_as == "used"


def test_too_many_wrong_ones_from_a_network_wait(use, browser, lan):
    use(signin={"network_failures": 2})
    start(browser, lan.code)
    for _ in range(2):
        browser.post("/recover/otp/", {"otp": "000000"})
    page = browser.post("/recover/otp/", {"otp": "000000"})
    assert page.status_code == 429 and page["Retry-After"]


def test_without_a_link_nothing_is_offered_by_sms(use, browser, lan):
    use(reissue={"mt_link": None})
    assert "/recover/send/" not in browser.post("/recover/", {"code": lan.code}).content.decode()
    assert start(browser, lan.code, follow=False).status_code == 429


def ended_case(account, n, channel="web"):
    at = timezone.now() - timedelta(minutes=n)
    return Case(
        account=account.code, phone=account.phone, channel=channel, key="k", version=1, length=6, alphabet="0",
        opened_at=at, expires_at=at, ended_at=at, ended_as="used",
    )  # fmt: skip


class TestTheApp:
    """The same by JSON."""

    def test_from_the_code_to_the_new_password(self, use, app, lan):
        ways = app.call("GET", "auth/recover").json()["data"]
        assert ways["ways"]["sms"] and ways["ways"]["text"]["link"] == "sms:8079?body=BH%20MK%20"
        assert ways["request"] is None
        answer = app.call("POST", "auth/recover", {"code": "DN4010123456789"})
        assert answer.status_code == 200 and app.session
        assert answer.json()["data"]["request"]["tries"] == 3
        otp = otp_of(read_phone()[0][1])
        wrong = app.call("POST", "auth/recover/otp", {"otp": another(otp)})
        assert wrong.status_code == 400
        assert [(each["code"], each["param"]) for each in wrong.json()["errors"]] == [("wrong_otp", "otp")]
        assert app.call("POST", "auth/recover/again").json()["data"]["request"]["again_at"]
        assert read_phone() == []  # too soon
        done = app.call("POST", "auth/recover/otp", {"otp": otp})
        came = done.json()["data"]["request"]
        assert (done.status_code, came["outcome"], came["by_text"]) == (200, "issued", False)
        assert came["title"] == "Hãy xem điện thoại của bạn" and "mật khẩu mới" in came["text"]
        assert app.sign_in(lan.code, read_phone()[0][1][-6:]).status_code == 401
        assert app.choose(PASSWORD).status_code == 200

    def test_every_code_is_answered_the_same(self, use, app, lan):
        heard = []
        for code in (lan.code, UNKNOWN):
            mine = type(app)()
            answers = [mine.call("POST", "auth/recover", {"code": code})]
            answers += [mine.call("POST", "auth/recover/otp", {"otp": "000000"}) for _ in range(4)]
            heard.append(
                [re.sub(r'"[^"]*(T..:|_token)[^,}]*', "", each.content.decode()) for each in answers]
            )
        assert heard[0] == heard[1]

    @pytest.mark.parametrize("by_text", [True, False])
    def test_over_the_limit_it_hears_what_the_page_says(self, use, app, lan, by_text):
        Case.objects.bulk_create(ended_case(lan, n) for n in range(2 if by_text else 3))
        app.call("POST", "auth/recover", {"code": lan.code})
        came = app.call("POST", "auth/recover/otp", {"otp": otp_of(read_phone()[0][1])})
        assert came.json()["data"]["request"] == app.call("GET", "auth/recover").json()["data"]["request"]
        came = came.json()["data"]["request"]
        assert (came["outcome"], came["by_text"]) == ("over_limit", by_text)
        until = timezone.localtime(datetime.fromisoformat(came["until"])).strftime("%H:%M %d/%m/%Y")
        assert until in came["text"] and ("nhắn tin" in came["text"]) is by_text

    def test_refusals_have_a_status(self, use, app, lan):
        assert app.call("POST", "auth/recover", {"code": "123"}).json()["errors"][0]["code"] == "bad_code"
        assert app.call("POST", "auth/recover/otp", {"otp": "123456"}).status_code == 409
        assert app.call("POST", "auth/recover/otp", {"otp": "12345"}).json()["errors"][0]["code"] == "bad_otp"
        assert app.call("POST", "auth/recover/again").status_code == 409
        use(budgets={"code_day": 0})
        busy = app.call("POST", "auth/recover", {"code": lan.code})
        assert (busy.status_code, busy.json()["errors"][0]["code"]) == (429, "otp_too_many")
        assert busy["Retry-After"]

    def test_where_the_agency_wants_it_the_pending_flow_follows(self, use, app, lan):
        use(choose_at_once=True)
        app.call("POST", "auth/recover", {"code": lan.code})
        answer = app.call("POST", "auth/recover/otp", {"otp": otp_of(read_phone()[0][1])})
        assert answer.status_code == 401
        assert {"id": "choose_password", "is_pending": True} in answer.json()["data"]["flows"]
        assert app.choose(PASSWORD).status_code == 200
