"""Quên mật khẩu by page: the way from the code to a new password, and that it is the same way for every code."""

import base64
import contextlib
import copy
import hashlib
import json
import re
import time
from datetime import datetime, timedelta
from urllib.parse import unquote

import pytest
from django.conf import settings
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from caplai.portal import recover
from caplai.signin.kept import COOKIE, _box
from caplai.store.models import Account, Case, Guess, Recovery
from tests.portal.forgetting import another, otp_of, read_phone, rules_with
from tests.service.test_forgotten import later
from tests.signin.conftest import App, is_in

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


@contextlib.contextmanager
def travel(minutes):
    now = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caplai.signin.kept.time.time", lambda: now() + 60 * minutes)
        yield


def start(browser, code, follow=True, lang="", **extra):
    """Type the code, then choose SMS."""
    browser.get("/recover/", {"lang": lang})
    ways = browser.post("/recover/", {"code": code}, follow=True, **extra)
    assert (ways.status_code, ways.redirect_chain) == (200, [("/recover/ways/", 302)])
    return browser.post("/recover/send/", {"code": code}, follow=follow, **extra)


def words(response, code=""):
    """A page without what is drawn for each answer, the time, and the code that was typed."""
    body = re.sub(r'(?<=name="csrfmiddlewaretoken" value=")[^"]+', "", response.content.decode())
    body = re.sub(r"(?<=[?]r=)[\w-]{8}|(?<![T:+\d])\d\d:\d\d( \d\d/\d\d/\d{4})?", "", body)
    body = re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL)
    return response.status_code, body.replace(code, "CODE") if code else body


def test_from_the_sign_in_page_to_a_new_password(browser, lan):
    assert 'href="/recover/"' in browser.get("/login/?lang=en").content.decode()
    assert "Social insurance code" in browser.get("/recover/").content.decode()
    ways = browser.post("/recover/", {"code": "012 345 6789"}, follow=True).content.decode()
    assert 'href="sms:8079?body=BH%20MK%200123456789"' in ways and "<svg" in ways
    page = browser.post("/recover/send/", {"code": lan.code}, follow=True)
    [(address, status)] = page.redirect_chain
    assert (address.partition("?")[0], status) == ("/recover/otp/", 302)
    field = re.search(r'<input[^>]*name="otp"[^>]*>', page.content.decode())[0]
    assert 'autocomplete="one-time-code"' in field and 'inputmode="numeric"' in field
    [(_, text)] = read_phone()
    page = browser.post("/recover/otp/", {"otp": otp_of(text)}, follow=True)
    assert [hop.partition("?")[0] for hop, _ in page.redirect_chain] == ["/recover/otp/", "/recover/done/"]
    assert "Check your phone" in page.content.decode()
    [(_, text)] = read_phone()
    page = browser.post("/login/", {"username": lan.code, "password": text[-6:]}, follow=True)
    assert page.redirect_chain[-1] == ("/choose-password/", 302)
    assert "The password from the message only opens this page." in page.content.decode()
    assert COOKIE in browser.cookies
    browser.post("/choose-password/", {"new_password": PASSWORD})
    assert is_in(browser) and not browser.cookies[COOKIE].value
    assert browser.get("/recover/done/").url == "/"


def test_every_code_is_answered_with_the_same_words(use, db):
    Account.objects.create(code="0000000003", phone="+84327000603", state="approved")
    Account.objects.create(code="0000000001", phone="+84327000601", state="pending")
    Account.objects.create(code="0000000002", phone="+84327000602", state="closed", email="a@example.vn")
    seen = set()
    for code in ("0000000001", "0000000002", "0000000003", UNKNOWN):
        Recovery.objects.all().delete()
        browser, heard = Client(), []
        heard.append(words(browser.post("/recover/", {"code": code}, follow=True), code))
        heard.append(words(browser.post("/recover/send/", {"code": code}, follow=True), code))
        heard.append(words(browser.post("/recover/again/", follow=True), code))
        later(seconds=61)
        heard.append(words(browser.post("/recover/again/", follow=True), code))
        heard += [
            words(browser.post("/recover/otp/", {"otp": "000000"}, follow=True), code) for _ in range(4)
        ]
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
    otp = otp_of(text)
    pages = [page, browser.post("/recover/otp/", {"otp": another(otp)}, follow=True)]
    pages.append(browser.post("/recover/otp/", {"otp": otp}, follow=True))
    for address in (hop for each in pages for hop, _ in each.redirect_chain):
        assert not any(secret in unquote(address) for secret in (lan.code, otp, another(otp)))
    assert not Session.objects.exists()
    kept = browser.cookies[COOKIE]
    assert kept["httponly"] and kept["samesite"] == "Lax"
    plain = _box().decrypt(kept.value).decode()
    assert lan.code in plain and otp not in plain
    assert lan.code not in str(base64.urlsafe_b64decode(kept.value))
    [secret] = json.loads(plain)["requests"]
    assert bytes(Recovery.objects.get().secret_hash) == hashlib.sha256(secret.encode()).digest()


def test_nothing_of_it_is_in_the_log(browser, lan, caplog):
    caplog.set_level("DEBUG")
    start(browser, lan.code)
    otp = otp_of(read_phone()[0][1])
    browser.post("/recover/otp/", {"otp": another(otp)})
    browser.post("/recover/otp/", {"otp": otp}, follow=True)
    issued = read_phone()[0][1][-6:]
    assert Case.objects.exists() and caplog.records
    said = " ".join(str(vars(record)) for record in caplog.records if not record.name.startswith("django.db"))
    [secret] = json.loads(_box().decrypt(browser.cookies[COOKIE].value))["requests"]
    for each in (lan.code, lan.phone[3:], otp, another(otp), issued, secret):
        assert each not in said


def test_a_wrong_otp_is_told_beside_its_field_and_at_the_top(browser, lan):
    start(browser, lan.code)
    otp = otp_of(read_phone()[0][1])
    page = browser.post("/recover/otp/?lang=en", {"otp": another(otp)}, follow=True).content.decode()
    assert page.count("Tries left: 2.") == 2
    assert otp not in page
    assert "Tries left" not in browser.get("/recover/otp/").content.decode()  # said once
    browser.post("/recover/otp/", {"otp": another(otp)})
    page = browser.post("/recover/otp/", {"otp": another(otp)}, follow=True).content.decode()
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
    page = browser.post("/recover/?lang=en", {"code": "12345"}, follow=True).content.decode()
    assert page.count("The code has 10 digits.") == 2 and 'value="12345"' in page
    browser.post("/recover/", {"code": "1" * 5000 + "\0"})
    assert "too long" in browser.get("/recover/").content.decode()
    assert browser.get("/recover/ways/").url == "/recover/"
    assert browser.post("/recover/send/", {"code": "12345"}).status_code == 302
    assert not Recovery.objects.exists()


class TestTwoClicks:
    """Without a script a form may be sent twice before there is an answer; then the second answer is what is shown."""

    def test_send_one_message(self, browser, lan):
        browser.post("/recover/", {"code": lan.code})
        second = copy.deepcopy(browser)
        for each in (browser, second):
            each.post("/recover/send/", {"code": lan.code})
        [(_, text)] = read_phone()
        assert Recovery.objects.count() == 1
        page = second.post("/recover/otp/?lang=en", {"otp": otp_of(text)}, follow=True)
        assert "Check your phone" in page.content.decode()

    def test_of_the_right_otp_are_told_that_it_was_right(self, browser, lan):
        start(browser, lan.code)
        otp, second = otp_of(read_phone()[0][1]), copy.deepcopy(browser)
        for each in (browser, second):
            page = each.post("/recover/otp/?lang=en", {"otp": otp}, follow=True)
            assert "Check your phone" in page.content.decode()
        assert len(read_phone()) == Case.objects.count() == 1

    def test_where_a_password_is_chosen_at_once_lead_there(self, use, browser, lan):
        use(choose_at_once=True)
        start(browser, lan.code)
        otp, second = otp_of(read_phone()[0][1]), copy.deepcopy(browser)
        for each in (browser, second):
            page = each.post("/recover/otp/", {"otp": otp}, follow=True)
            assert page.redirect_chain == [("/choose-password/", 302)]
        second.post("/choose-password/", {"new_password": PASSWORD})
        assert is_in(second) and Case.objects.count() == 1


class TestSeveralRequests:
    """In one browser, each in a tab of its own."""

    def test_of_a_family_go_on_side_by_side(self, browser, lan):
        son = Account.objects.create(code="0123456790", phone=lan.phone, state="approved")
        hers = start(browser, lan.code).redirect_chain[-1][0]
        [(_, text)] = read_phone()
        his = start(browser, son.code).redirect_chain[-1][0]
        [(_, other)] = read_phone()
        for address, each in ((hers, text), (his, other)):
            page = browser.post(address, {"otp": otp_of(each)}, follow=True)
            assert page.redirect_chain[-1][0].startswith("/recover/done/")
        assert set(Recovery.objects.values_list("tries", "ended_as")) == {(0, "proved")}

    def test_of_one_code_and_way_are_one(self, browser, lan):
        first, second = (start(browser, lan.code).redirect_chain[-1][0] for _ in range(2))
        assert first == second and len(read_phone()) == 1

    def test_are_few(self, browser, lan):
        addresses = [start(browser, f"000000000{n}").redirect_chain[-1][0] for n in range(5)]
        assert browser.get(addresses[0]).url == "/recover/"
        assert [browser.get(each).status_code for each in addresses[1:]] == [200] * 4

    def test_are_named_to_their_own_browser_only(self, browser, lan):
        address = start(browser, lan.code).redirect_chain[-1][0]
        otp = otp_of(read_phone()[0][1])
        stranger = Client()
        start(stranger, UNKNOWN)
        assert stranger.get(address).url == "/recover/"
        page = stranger.post(f"{address}&lang=en", {"otp": otp}, follow=True).content.decode()
        assert "This one-time code can no longer be used" in page and not Case.objects.exists()


def test_it_says_until_when_the_digits_can_be_used_also_when_they_are_sent_again(browser, lan):
    start(browser, lan.code, lang="en")
    later(minutes=4)
    page = browser.post("/recover/again/?lang=en", follow=True).content.decode()
    until = timezone.localtime(Recovery.objects.get().expires_at)
    assert "is sent again" in page and f"until {until:%H:%M}" in page
    assert until - timezone.now() < timedelta(minutes=1)


def test_who_may_have_none_sent_again_can_still_type_the_one_that_came(use, browser, lan):
    start(browser, lan.code)
    otp = otp_of(read_phone()[0][1])
    use(budgets={"code_day": 1})
    later(seconds=61)
    page = browser.post("/recover/again/?lang=en", follow=True)
    assert page.status_code == 200 and "Codes were asked for too often" in page.content.decode()
    later(seconds=61)
    page = start(browser, lan.code).content.decode()  # by the page of the ways, too
    assert "Codes were asked for too often" in page and 'name="otp"' in page
    page = browser.post("/recover/otp/", {"otp": otp}, follow=True)
    assert "Check your phone" in page.content.decode()


def test_too_many_says_when(use, browser, app, lan):
    use(budgets={"code_day": 1})
    start(Client(), lan.code)
    began = timezone.now()
    page = start(browser, lan.code, lang="en")
    times = {  # the next whole hour; the clock may have come to it meanwhile
        f"{timezone.localtime(now + timedelta(hours=25)).replace(minute=0):%H:%M %d/%m/%Y}"
        for now in (began, timezone.now())
    }
    [until] = [time for time in times if f"Try again after {time}" in page.content.decode()]
    assert 23 * 3600 < int(page["Retry-After"]) <= 25 * 3600
    page = browser.get("/recover/said/?lang=vi")
    with travel(minutes=31):
        assert browser.get("/recover/said/").url == "/recover/"
    assert page.status_code == 429 and until in page.content.decode()
    answer = app.call("POST", "auth/recover", {"code": lan.code})
    assert 23 * 3600 < int(answer["Retry-After"]) <= 25 * 3600


def test_the_sign_in_page_has_the_code_for_half_an_hour_and_until_somebody_signs_out(browser, lan):
    start(browser, lan.code)
    filled_in = f'value="{lan.code}"'
    for path in ("/login/", "/recover/"):
        assert filled_in in browser.get(path).content.decode()
        with travel(minutes=31):
            assert filled_in not in browser.get(path).content.decode()
    browser.post("/logout/")
    assert filled_in not in browser.get("/login/").content.decode()


@pytest.mark.parametrize("brought", ["", "x", "é", "gAAAAABnothing"])
def test_a_cookie_that_is_none_of_ours_is_none(browser, db, brought):
    browser.cookies[COOKIE] = brought
    assert browser.get("/recover/").status_code == 200
    assert browser.get("/recover/ways/").url == "/recover/"


def test_busy_and_too_many_offer_the_text(use, browser, lan):
    use(budgets={"site_hour": 0})
    page = start(browser, lan.code)
    assert page.status_code == 429 and page["Retry-After"]
    assert f"sms:8079?body=BH%20MK%20{lan.code}" in page.content.decode()
    use(budgets={"code_day": 0})
    assert start(browser, UNKNOWN).status_code == 429


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
    page = browser.get("/recover/otp/", follow=True)
    assert page.redirect_chain[-1] == ("/choose-password/", 302)
    assert "Set a password that you will use from now on." in page.content.decode()
    assert "the message" not in page.content.decode() and "sms:8079" not in page.content.decode()
    elsewhere = copy.deepcopy(browser)
    del elsewhere.cookies[settings.SESSION_COOKIE_NAME]
    late = elsewhere.get("/recover/done/?lang=en").content.decode()
    assert "<h1>Set a new password</h1>" in late and "your registered phone" not in late
    page = browser.post("/choose-password/", {"new_password": PASSWORD}, follow=True)
    assert lan.code in page.content.decode() and read_phone() == []
    assert Client().post("/login/", {"username": lan.code, "password": PASSWORD}).status_code == 302
    assert Case.objects.get().ended_as == "used"


def test_too_many_wrong_ones_from_a_network_wait(use, browser, lan):
    use(signin={"network_failures": 2})
    start(browser, lan.code)
    for _ in range(2):
        browser.post("/recover/otp/", {"otp": "000000"})
    page = browser.post("/recover/otp/", {"otp": "000000"}, follow=True)
    assert page.status_code == 429 and 60 < int(page["Retry-After"]) <= 900


def test_without_a_link_nothing_is_offered_by_sms(use, browser, lan):
    use(reissue={"mt_link": None})
    ways = browser.post("/recover/", {"code": lan.code}, follow=True).content.decode()
    assert "8079" in ways and "/recover/send/" not in ways
    assert start(browser, lan.code).status_code == 429


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
        issued = read_phone()[0][1][-6:]
        twice = app.call("POST", "auth/recover/otp", {"otp": otp})
        assert (twice.status_code, twice.json()["data"]) == (200, done.json()["data"])
        assert app.sign_in(lan.code, issued).status_code == 401
        assert app.choose(PASSWORD).status_code == 200

    def test_every_code_is_answered_the_same(self, use, app, lan):
        heard = []
        for code in (lan.code, UNKNOWN):
            mine = type(app)()
            answers = [mine.call("POST", "auth/recover", {"code": code})]
            answers += [mine.call("POST", "auth/recover/otp", {"otp": "000000"}) for _ in range(4)]
            heard.append(
                [
                    re.sub(r'"[^"]*(T..:|_token)[^,}]*|"id": "[^"]+"', "", each.content.decode())
                    for each in answers
                ]
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

    def test_several_requests_have_names(self, use, app, lan):
        names = [
            app.call("POST", "auth/recover", {"code": code}).json()["data"]["request"]["id"]
            for code in (lan.code, UNKNOWN)
        ]
        assert app.call("GET", "auth/recover").json()["data"]["request"]["id"] == names[1]
        otp = otp_of(read_phone()[0][1])
        assert app.call("POST", "auth/recover/otp", {"otp": otp}).status_code == 400
        again = app.call("POST", "auth/recover/again", {"request": names[0]})
        assert again.json()["data"]["request"]["id"] == names[0]
        proved = app.call("POST", "auth/recover/otp", {"otp": otp, "request": names[0]})
        assert proved.json()["data"]["request"]["outcome"] == "issued"
        assert app.call("POST", "auth/recover/again", {"request": "x"}).status_code == 409

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
