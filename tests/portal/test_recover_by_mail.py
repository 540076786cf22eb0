"""Quên mật khẩu by e-mail: a link, or six digits, to confirmed addresses; then a password is chosen, never mailed."""

import copy
import re
import threading
import time
from datetime import timedelta

import pytest
from django.db import connections
from django.db.models import F
from django.test import Client
from django.utils import timezone

from caplai.domain.otp import Channel, Sending
from caplai.domain.policy import Outcome
from caplai.portal import recover
from caplai.service import locks
from caplai.service.forgotten import again, ask, look
from caplai.service.forgotten_facts import Asker
from caplai.service.forgotten_proof import Proof, prove, prove_link
from caplai.store.models import Account, Address, Case, Guess, Mail, Recovery
from tests.mailbox import code_in, link_in, text_of
from tests.portal.forgetting import another, otp_of, read_phone, rules_with
from tests.portal.test_recover import ended_case, words
from tests.service.test_forgotten import later
from tests.signin.conftest import App, is_in

pytestmark = pytest.mark.django_db(transaction=True)
ASKER = Asker("203.0.113.7")
PASSWORD = "con mèo trèo cây cau"
MAIL = "lan@example.vn"


@pytest.fixture
def rules(post, monkeypatch):
    changed = rules_with()
    monkeypatch.setattr(recover, "rules", lambda: changed)
    return changed


@pytest.fixture
def browser(rules) -> Client:
    return Client()


def send(browser, code):
    ways = browser.post("/recover/", {"code": code}, follow=True).content.decode()
    assert 'name="channel" value="email"' in ways
    return browser.post("/recover/send/", {"code": code, "channel": "email"}, follow=True)


def token_in(message):
    page, _, token = link_in(message).partition("#")
    assert page == "https://caplai.example.vn/recover/link/"
    return token


def test_the_link_opens_the_page_that_chooses_a_password_in_whatever_browser(browser, post, citizen):
    send(browser, citizen.code)
    message = post.newest(MAIL)
    text = text_of(message)
    assert citizen.code not in text and citizen.phone not in text and "5678" in text
    assert "24 giờ" in text and "24 hours" in text
    token = token_in(message)
    for _ in range(2):  # a second time, for the first one may have been a mail program's
        other = Client()
        assert 'name="token"' in other.get("/recover/link/").content.decode()
        page = other.post("/recover/link/?lang=en", {"token": token}, follow=True)
        assert page.redirect_chain == [("/choose-password/", 302)]
        assert 'type="checkbox" name="remember"' in page.content.decode()  # no sign-in page has asked
        page = page.content.decode()
        assert "Set a password that you will use from now on." in page and "from the message" not in page
    case = Case.objects.get()
    assert (case.channel, case.texts) == ("email", 0) and read_phone() == []
    other.post("/choose-password/", {"new_password": PASSWORD}, follow=True)
    assert is_in(other)
    assert Case.objects.get().ended_as == "used"
    told = other.get("/account/history/?lang=en").content.decode()
    assert "The link in the email was opened." in told and "It was typed right." not in told
    for late in (Client(), other):
        page = late.post("/recover/link/?lang=en", {"token": token}, follow=True)
        assert "This one-time code can no longer be used" in page.content.decode()
    assert not any(PASSWORD in text_of(each) for _, each in post.deliver().mails)


THIEF = "thief@example.com"


@pytest.mark.parametrize(
    ("added", "used", "reached"),
    [
        (timedelta(hours=25), timedelta(hours=24.5), False),
        (timedelta(days=13), timedelta(days=6.9), False),
        (timedelta(days=13), timedelta(days=7.1), True),
        (timedelta(days=9), timedelta(days=1.9), True),
        (timedelta(hours=1), timedelta(hours=2), True),
    ],
)
def test_an_address_that_was_young_when_a_case_was_used_is_no_way_back_for_a_week(
    browser, post, citizen, open_case, added, used, reached
):
    """Somebody who had the phone for five minutes added it; the owner, back in, may not remove it for a day."""
    now = timezone.now()
    Address.objects.create(account=citizen.code, email=THIEF, confirmed_at=now - added)
    open_case()
    Case.objects.update(opened_at=now - used, ended_at=now - used, ended_as="used")
    said = send(browser, citizen.code)
    assert len(post.deliver().to(MAIL)) == 1
    assert len(post.box.to(THIEF)) == reached
    Account.objects.update(email="")
    assert words(send(Client(), citizen.code)) == words(said)
    assert len(post.deliver().to(THIEF)) == 2 * reached


def test_what_was_mailed_before_a_case_was_used_is_worth_nothing_after_it(browser, post, citizen, open_case):
    Address.objects.create(account=citizen.code, email=THIEF, confirmed_at=timezone.now())
    send(browser, citizen.code)
    message = post.newest(THIEF)
    open_case()
    Case.objects.update(ended_at=timezone.now(), ended_as="used")
    for path, value in (("link", {"token": token_in(message)}), ("otp", {"otp": code_in(message)})):
        browser.post(f"/recover/{path}/", value, follow=True)
    assert not Case.objects.filter(channel="email").exists()


def test_who_is_still_signed_in_is_signed_out_by_the_link_and_chooses(browser, post, citizen, open_case, app):
    held = open_case()
    browser.post("/login/", {"username": citizen.code, "password": held.password})
    browser.post("/choose-password/", {"new_password": "vịt bơi qua sông rộng"})
    app.sign_in(citizen.code, "vịt bơi qua sông rộng")
    assert is_in(browser) and app.is_in
    send(Client(), citizen.code)
    token = token_in([each for each in post.deliver().to(MAIL) if "/recover/link/" in text_of(each)][-1])
    answer = app.call("POST", "auth/recover/link", {"token": token})
    assert {"id": "choose_password", "is_pending": True} in answer.json()["data"]["flows"]
    page = browser.post("/recover/link/", {"token": token}, follow=True)
    assert page.redirect_chain == [("/choose-password/", 302)]
    assert not app.is_in and app.choose(PASSWORD).status_code == 200 and app.is_in


def test_the_digits_do_the_same_on_the_page_that_asked(browser, post, citizen):
    page = send(browser, citizen.code)
    assert page.redirect_chain[0][0].startswith("/recover/otp/")
    code = code_in(post.newest(MAIL))
    assert "còn lại: 2" in browser.post("/recover/otp/", {"otp": another(code)}, follow=True).content.decode()
    page = browser.post("/recover/otp/", {"otp": f"{code[:3]} {code[3:]}"}, follow=True)
    assert page.redirect_chain == [("/choose-password/", 302)]


def test_every_code_is_answered_with_the_same_words_and_only_confirmed_addresses_get_a_mail(
    rules, post, citizen
):
    Account.objects.create(code="0000000001", phone="+84327000601", email="a@example.vn", state="pending")
    Account.objects.create(code="0000000002", phone="+84327000602", state="approved")
    Address.objects.create(account="0000000002", email="b@example.vn")  # not confirmed
    Address.objects.create(account=citizen.code, email="c@example.vn", confirmed_at="2026-01-01T00:00Z")
    seen = set()
    for code in (citizen.code, "0000000001", "0000000002", "9999999999"):
        browser = Client()
        heard = [words(send(browser, code), code), words(browser.post("/recover/again/", follow=True), code)]
        heard += [
            words(browser.post("/recover/otp/", {"otp": "000000"}, follow=True), code) for _ in range(4)
        ]
        seen.add(tuple(heard))
    assert len(seen) == 1
    assert sorted(to for to, _ in post.deliver().mails) == ["c@example.vn", MAIL]


def test_neither_digits_nor_token_are_in_the_database(browser, post, citizen):
    from django.db import connection

    send(browser, citizen.code)
    message = post.newest(MAIL)
    with connection.cursor() as cursor:
        for table in ("recovery", "mail", "event", "django_session"):
            cursor.execute(f"select coalesce(string_agg(t::text, ' '), '') from {table} t")
            found = cursor.fetchone()[0]
            assert code_in(message) not in found and token_in(message) not in found, table


def test_an_address_that_was_taken_away_since_proves_nothing(rules, post, citizen):
    asked = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
    message = post.newest(MAIL)
    Account.objects.update(email="other@example.vn")
    assert prove(asked.secret, code_in(message), ASKER, rules=rules).proof is Proof.WRONG
    assert prove_link(token_in(message), ASKER, rules=rules).proof is Proof.OVER
    later(seconds=61)
    assert again(asked.secret, ASKER, rules=rules).sent
    assert post.deliver().to("other@example.vn") == []


def test_it_lives_a_day_and_the_same_digits_come_again(rules, post, citizen):
    asked = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
    first = post.newest(MAIL)
    later(seconds=61)
    assert again(asked.secret, ASKER, rules=rules).sent
    second = post.newest(MAIL)
    assert code_in(second) == code_in(first) and len(post.box.to(MAIL)) == 2
    assert "24 giờ" in text_of(first) and "23 giờ" in text_of(second)
    later(hours=23, minutes=58)
    assert prove_link(token_in(first), ASKER, rules=rules).proof is Proof.DONE
    later(minutes=2)
    assert prove_link(token_in(first), ASKER, rules=rules).proof is Proof.OVER


def test_a_phone_that_an_import_changes_meanwhile_is_not_locked_out_of_turn(rules, post, citizen, conn):
    ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
    token, found = token_in(post.newest(MAIL)), []

    def prove_it():
        found.append(prove_link(token, ASKER, rules=rules).proof)
        connections.close_all()

    thread = threading.Thread(target=prove_it)
    with conn.transaction():  # as an import: it has the account's lock when it changes the phone
        locks.take(conn, [locks.account_key(citizen.code)])
        thread.start()
        waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        while not conn.execute(waits).fetchone()[0]:
            assert thread.is_alive(), "it did not wait for the account"
            time.sleep(0.01)  # nothing but the table of locks tells that it waits
        conn.execute("update account set phone = '+84327000999' where code = %s", [citizen.code])
    thread.join()
    assert found == [Proof.OVER] and not Case.objects.exists()
    assert prove_link(token, ASKER, rules=rules).proof is Proof.DONE


def test_used_up_guesses_close_the_digits_and_not_the_link(rules, post, citizen):
    asked = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
    message = post.newest(MAIL)
    Guess.objects.bulk_create(Guess(account=citizen.code, network="x") for _ in range(20))
    assert prove(asked.secret, code_in(message), ASKER, rules=rules).proof is Proof.WRONG
    assert prove_link(token_in(message), ASKER, rules=rules).proof is Proof.DONE


@pytest.mark.parametrize("token", ["", "x", "\ud800", "A" * 43, "é" * 43])
def test_a_token_that_is_none_opens_nothing(rules, db, token):
    assert prove_link(token, ASKER, rules=rules).proof is Proof.OVER


def test_sms_and_mail_have_a_day_each_and_mails_spend_no_sms(rules, post, citizen):
    for n in range(5):
        sent = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
        assert sent.sending is Sending.SENT, n
    assert (
        ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL).sending is Sending.TOO_MANY
    )
    assert ask(citizen.code, ASKER, secret=None, rules=rules).sending is Sending.SENT
    full = rules_with(budgets={"site_hour": 1})
    assert ask("9999999999", ASKER, secret=None, rules=full).sending is Sending.BUSY
    assert ask("9999999999", ASKER, secret=None, rules=full, channel=Channel.EMAIL).sending is Sending.SENT


def test_digits_that_were_sent_twice_lead_on_until_a_password_is_chosen(rules, post, citizen):
    browser = Client()
    send(browser, citizen.code)
    code = code_in(post.newest(MAIL))
    second = copy.deepcopy(browser)  # before the answer to the first has come, which ends the session
    browser.post("/recover/otp/", {"otp": code})
    second.post("/recover/otp/", {"otp": another(code)})
    assert Recovery.objects.get().tries == 1
    page = second.post("/recover/otp/", {"otp": code}, follow=True)
    assert page.redirect_chain == [("/choose-password/", 302)]
    second.post("/choose-password/", {"new_password": PASSWORD})
    assert is_in(second) and Case.objects.count() == 1
    late = copy.deepcopy(browser).post("/recover/otp/", {"otp": code}, follow=True)
    assert [hop.partition("?")[0] for hop, _ in late.redirect_chain][-1] == "/login/"


def test_who_asks_by_sms_after_it_still_has_the_mail(rules, post, citizen):
    mailed = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
    texted = ask(citizen.code, ASKER, secret=mailed.secret, rules=rules)
    assert prove(texted.secret, otp_of(read_phone()[0][1]), ASKER, rules=rules).came.decided is Outcome.ISSUED
    message = post.newest(MAIL)
    assert prove(mailed.secret, code_in(message), ASKER, rules=rules).came.decided is Outcome.JOINED
    assert prove_link(token_in(message), ASKER, rules=rules).proof is Proof.DONE


def test_without_a_mail_server_the_way_is_not_offered(transactional_db, monkeypatch, citizen):
    changed = rules_with()
    monkeypatch.setattr(recover, "rules", lambda: changed)
    assert (
        'value="email"'
        not in Client().post("/recover/", {"code": citizen.code}, follow=True).content.decode()
    )
    page = Client().post("/recover/send/", {"code": citizen.code, "channel": "email"}, follow=True)
    assert page.status_code == 429 and not Recovery.objects.exists() and not Mail.objects.exists()


def test_the_app_does_it_too(rules, post, citizen):
    app = App()
    assert app.call("GET", "auth/recover").json()["data"]["ways"]["email"]
    asked = app.call("POST", "auth/recover", {"code": citizen.code, "channel": "email"})
    assert asked.json()["data"]["request"]["channel"] == "email"
    assert app.call("POST", "auth/recover", {"code": citizen.code, "channel": "fax"}).status_code == 400
    other = App()
    answer = other.call("POST", "auth/recover/link", {"token": token_in(post.newest(MAIL))})
    assert answer.status_code == 401
    assert {"id": "choose_password", "is_pending": True} in answer.json()["data"]["flows"]
    assert other.choose(PASSWORD).status_code == 200
    assert app.call("POST", "auth/recover/link", {"token": "x"}).status_code == 409


class TestWhoAskedWithSomebodysCode:
    """The owner opens the mail's link elsewhere: who asked must see what is seen for a code that nobody has."""

    @pytest.fixture
    def heard(self, rules, post, citizen):
        """What a stranger's app and page hear of two codes; the link of the first one is opened by its owner between,
        with these cases there already.
        """

        def hear(until_used=False, cases=0):
            heard = []
            for code in (citizen.code, "9999999999"):
                app, browser = App(), Client()
                mine = [app.call("POST", "auth/recover", {"code": code, "channel": "email"})]
                mine.append(send(browser, code))
                if code == citizen.code:
                    for message in post.deliver().to(MAIL)[-2:]:
                        owner = Client()
                        owner.post("/recover/link/", {"token": token_in(message)})
                        if until_used:
                            owner.post("/choose-password/", {"new_password": PASSWORD})
                later(seconds=61)
                mine.append(app.call("GET", "auth/recover"))
                mine += [browser.get(f"/recover/{page}/", follow=True) for page in ("done", "otp")]
                mine += [app.call("POST", "auth/recover", {"code": code, "channel": "email"})]
                mine += [app.call("POST", "auth/recover/again"), browser.post("/recover/again/", follow=True)]
                for _ in range(4):
                    mine.append(app.call("POST", "auth/recover/otp", {"otp": "000000"}))
                    mine.append(browser.post("/recover/otp/", {"otp": "000000"}, follow=True))
                mine.append(app.call("GET", "auth/recover"))
                heard.append([(each.status_code, _without_times(words(each, code)[1])) for each in mine])
            return heard

        return hear

    @pytest.mark.parametrize("until_used", [False, True], ids=["opened", "used"])
    def test_learns_nothing_when_its_owner_opens_the_link(self, heard, until_used):
        hers, nobodys = heard(until_used)
        assert hers == nobodys
        assert set(Recovery.objects.values_list("ended_as", flat=True)) == {"linked", "tried_out"}

    def test_learns_nothing_of_a_limit(self, heard, citizen):
        Case.objects.bulk_create(ended_case(citizen, n) for n in range(4))
        hers, nobodys = heard()
        assert hers == nobodys
        assert "over_limit" in Recovery.objects.values_list("outcome", flat=True)

    def test_nothing_of_it_is_told_to_the_browser_that_asked_but_its_digits_go_on(self, rules, post, citizen):
        asked = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
        message = post.newest(MAIL)
        assert prove_link(token_in(message), ASKER, rules=rules).came.decided is Outcome.ISSUED
        standing = look(asked.secret, rules=rules)
        assert (standing.came, standing.over, standing.tries) == (None, False, 3)
        assert prove(asked.secret, code_in(message), ASKER, rules=rules).came.decided is Outcome.JOINED
        assert look(asked.secret, rules=rules).came.decided is Outcome.JOINED

    def test_the_digits_of_a_link_that_was_used_open_nothing(self, rules, post, citizen):
        asked = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
        message = post.newest(MAIL)
        prove_link(token_in(message), ASKER, rules=rules)
        Case.objects.update(ended_at=F("opened_at"), ended_as="used")
        assert prove(asked.secret, another(code_in(message)), ASKER, rules=rules).proof is Proof.WRONG
        assert prove(asked.secret, code_in(message), ASKER, rules=rules).proof is Proof.OVER
        for _ in range(3):
            prove(asked.secret, another(code_in(message)), ASKER, rules=rules)
        assert prove_link(token_in(message), ASKER, rules=rules).proof is Proof.OVER
        assert Case.objects.count() == 1

    def test_a_mail_that_is_asked_for_after_it_is_good_again(self, rules, post, citizen):
        asked = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
        first = post.newest(MAIL)
        prove_link(token_in(first), ASKER, rules=rules)
        Case.objects.update(ended_at=F("opened_at"), ended_as="used")
        later(seconds=61)
        assert again(asked.secret, ASKER, rules=rules).sent
        second = post.newest(MAIL)
        assert token_in(second) != token_in(first)
        assert prove_link(token_in(first), ASKER, rules=rules).proof is Proof.OVER
        assert prove(asked.secret, code_in(second), ASKER, rules=rules).came.decided is Outcome.ISSUED

    def test_in_the_browser_that_asked_the_link_tells_as_the_digits_do(self, rules, post, citizen):
        asked = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
        prove_link(token_in(post.newest(MAIL)), ASKER, rules=rules, kept=[asked.secret])
        assert look(asked.secret, rules=rules).came.decided is Outcome.ISSUED


def _without_times(body: str) -> str:
    return re.sub(r'"[^"]*(T..:|_token)[^,}]*|"id": "[^"]+"', "", body)


def test_a_mail_offers_no_digits_that_would_be_refused_and_its_link_works(browser, post, citizen):
    Guess.objects.bulk_create(Guess(account=citizen.code, network="x") for _ in range(20))
    send(browser, citizen.code)
    message = post.newest(MAIL)
    text = text_of(message)
    assert not re.search(r"(?<!\d)\d{6}(?!\d)", text) and "6 chữ số" not in text and "digits" not in text
    page = Client().post("/recover/link/", {"token": token_in(message)}, follow=True)
    assert page.redirect_chain == [("/choose-password/", 302)]


@pytest.mark.parametrize("channel", ["sms", "email"])
def test_where_nothing_comes_the_page_names_another_way(browser, post, citizen, channel):
    pages = []
    for code in (citizen.code, "9999999999"):
        asking = Client()
        page = asking.post("/recover/send/?lang=en", {"code": code, "channel": channel}, follow=True)
        page = page.content.decode()
        section = page.partition('class="help"')[2].partition("</section>")[0]
        assert "You can text instead" in section and 'href="sms:8079?body=BH%20MK%20"' in section
        assert 'href="/recover/ways/"' in section
        pages.append(re.sub(r'value="[^"]*"|r=[\w-]+', "", section))
    assert pages[0] == pages[1]
