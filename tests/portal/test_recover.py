"""Quên mật khẩu by page: the way from the code to a new password, and that it is the same way for every code."""

import re
from urllib.parse import unquote

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client

from caplai.portal import recover
from caplai.store.models import Account, Case, Recovery
from tests.portal.forgetting import another, otp_of, read_phone, rules_with
from tests.service.test_forgotten import later

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
    assert "Look at your phone" in page.content.decode()
    [(_, text)] = read_phone()
    page = browser.post("/login/", {"username": lan.code, "password": text[-6:]}, follow=True)
    assert page.redirect_chain[-1] == ("/choose-password/", 302)
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
        heard += [words(browser.post("/recover/otp/", {"otp": "x"}), code) for _ in range(4)]
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


def test_a_wrong_otp_is_told_beside_its_field_and_at_the_top(browser, lan):
    start(browser, lan.code)
    otp = otp_of(read_phone()[0][1])
    page = browser.post("/recover/otp/?lang=en", {"otp": another(otp)}).content.decode()
    assert page.count("Tries left: 2.") == 2
    assert otp not in page
    browser.post("/recover/otp/", {"otp": another(otp)})
    page = browser.post("/recover/otp/", {"otp": another(otp)}).content.decode()
    assert "Begin again" in page
    assert "Begin again" in browser.get("/recover/otp/").content.decode()
    assert not Case.objects.exists()


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
    assert "No more for free just now" in page.content.decode()
    assert 'href="sms:8079' in page.content.decode()


def test_where_the_agency_wants_it_a_password_is_chosen_on_the_spot(use, browser, lan):
    use(choose_at_once=True)
    start(browser, lan.code)
    page = browser.post("/recover/otp/", {"otp": otp_of(read_phone()[0][1])}, follow=True)
    assert page.redirect_chain == [("/choose-password/", 302)]
    page = browser.post("/choose-password/", {"new_password": PASSWORD}, follow=True)
    assert lan.code in page.content.decode() and read_phone() == []
    assert Client().post("/login/", {"username": lan.code, "password": PASSWORD}).status_code == 302
    assert Case.objects.get().ended_as == "used"


def test_too_many_wrong_ones_from_a_network_wait(use, browser, lan):
    use(signin={"network_failures": 2})
    start(browser, lan.code)
    for _ in range(2):
        browser.post("/recover/otp/", {"otp": "000000x"})
    page = browser.post("/recover/otp/", {"otp": "000000x"})
    assert page.status_code == 429 and page["Retry-After"]


def test_without_a_link_nothing_is_offered_by_sms(use, browser, lan):
    use(reissue={"mt_link": None})
    assert "/recover/send/" not in browser.post("/recover/", {"code": lan.code}).content.decode()
    assert start(browser, lan.code, follow=False).status_code == 429
