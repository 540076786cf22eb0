"""The free ways have limits of their own, and the limits of all ways hold for them, too; what is said beyond them."""

import re
from datetime import datetime, timedelta

import pytest
from django.db.models import F
from django.test import Client
from django.utils import timezone

from caplai.domain.grammar import Reissue
from caplai.domain.otp import Channel, Sending
from caplai.domain.policy import Outcome
from caplai.portal import recover
from caplai.service.forgotten import ask, look
from caplai.service.forgotten_facts import Asker
from caplai.service.forgotten_proof import prove
from caplai.service.reissue import reissue
from caplai.service.requests import ReplyTo, Request
from caplai.store.models import Case
from tests.mailbox import code_in
from tests.portal.forgetting import otp_of, read_phone, rules_with
from tests.portal.test_recover import ended_case
from tests.service.test_forgotten import later
from tests.signin.conftest import App

pytestmark = pytest.mark.django_db(transaction=True)
ASKER = Asker("203.0.113.7")
MAIL = "lan@example.vn"


def had(account, *channels):
    """Ended cases of today, the first one an hour ago."""
    Case.objects.bulk_create(ended_case(account, 60 - n, channel) for n, channel in enumerate(channels))


def proved(account, rules):
    """What came of a proof by SMS, and how it stands."""
    asked = ask(account.code, ASKER, secret=None, rules=rules)
    came = prove(asked.secret, otp_of(read_phone()[0][1]), ASKER, rules=rules).came
    assert look(asked.secret, rules=rules).came == came
    return came


def text(account, conn, rules):
    """What a text to the short code brings."""
    reply_to = ReplyTo("viettel", "8079", account.phone[1:])
    request = Request(Reissue(account.code), "sms", account.phone, account.phone, reply_to)
    with conn.transaction():
        return reissue(conn, [request], rules)[0].outcome


@pytest.mark.parametrize(
    ("before", "free", "by_text"),
    [
        (["sms", "sms"], Outcome.ISSUED, False),
        (["sms", "web"], Outcome.ISSUED, False),
        (["web", "web"], Outcome.OVER_LIMIT, True),
        (["web", "email"], Outcome.OVER_LIMIT, True),
        (["email", "app"], Outcome.OVER_LIMIT, True),
        (["sms", "sms", "sms"], Outcome.OVER_LIMIT, False),
        (["web", "web", "sms"], Outcome.OVER_LIMIT, False),
        (["counter", "sms", "web"], Outcome.OVER_LIMIT, False),
    ],
)
def test_what_was_free_counts_there_and_all_of_it_counts_everywhere(lan, conn, rules, before, free, by_text):
    had(lan, *before)
    came = proved(lan, rules_with())
    assert (came.decided, came.by_text) == (free, by_text)
    if free is Outcome.OVER_LIMIT:
        assert text(lan, conn, rules) is (Outcome.ISSUED if by_text else Outcome.OVER_LIMIT)
        day = Case.objects.order_by("opened_at").first().opened_at + timedelta(days=1)
        assert timedelta() <= came.until - day < timedelta(minutes=1)  # and never too early


def test_five_texts_are_told_with_their_time_and_a_mail_still_goes_on(
    post, citizen, conn, rules, monkeypatch
):
    mine = rules_with()
    monkeypatch.setattr(recover, "rules", lambda: mine)
    for _ in range(5):
        text(citizen, conn, rules)
    read_phone()
    browser = Client()
    browser.post("/recover/send/", {"code": citizen.code})
    otp = otp_of(read_phone()[0][1])
    page = browser.post("/recover/otp/?lang=en", {"otp": otp}, follow=True).content.decode()
    until = timezone.localtime(Case.objects.get().expires_at).strftime("%H:%M %d/%m/%Y")
    assert f"works until {until}" in page and "free" not in page.partition("<h1>")[2].partition("</h1>")[0]
    assert 'href="sms:8079' not in page and 'href="/login/"' in page
    assert re.search(r'name="code" value="0012345678".*name="channel" value="email"', page, re.DOTALL)
    browser.post("/recover/send/", {"code": citizen.code, "channel": "email"})
    page = browser.post("/recover/otp/", {"otp": code_in(post.newest(MAIL))}, follow=True)
    assert page.redirect_chain == [("/choose-password/", 302)]


def test_without_an_address_no_mail_is_offered(post, citizen, conn, rules):
    type(citizen).objects.update(email="")
    for _ in range(5):
        text(citizen, conn, rules)
    read_phone()
    came = proved(citizen, rules_with())
    assert came.decided is Outcome.OVER_LIMIT and not came.by_email and not came.by_text


def test_where_all_are_used_up_the_page_says_when_and_what_still_works(lan, monkeypatch):
    mine = rules_with()
    monkeypatch.setattr(recover, "rules", lambda: mine)
    had(lan, "sms", "sms", "sms")
    browser = Client()
    browser.post("/recover/send/", {"code": lan.code})
    otp = otp_of(read_phone()[0][1])
    page = browser.post("/recover/otp/?lang=en", {"otp": otp}, follow=True).content.decode()
    assert "<h1>No more new passwords for now</h1>" in page and "sms:8079" not in page
    assert 'href="/login/"' in page and "still works" in page and "office" in page


def test_when_the_time_has_come_the_page_offers_to_begin_again(lan, monkeypatch):
    mine = rules_with()
    had(lan, "sms", "sms", "sms")
    asked = ask(lan.code, ASKER, secret=None, rules=mine)
    prove(asked.secret, otp_of(read_phone()[0][1]), ASKER, rules=mine)
    Case.objects.update(opened_at=F("opened_at") - timedelta(days=1))
    came = look(asked.secret, rules=mine).came
    assert (came.decided, came.until) == (Outcome.OVER_LIMIT, None)


def test_the_app_hears_which_other_way_works_now(post, citizen, conn, rules, monkeypatch):
    mine = rules_with()
    monkeypatch.setattr(recover, "rules", lambda: mine)
    for _ in range(5):
        text(citizen, conn, rules)
    read_phone()
    app = App()
    app.call("POST", "auth/recover", {"code": citizen.code})
    came = app.call("POST", "auth/recover/otp", {"otp": otp_of(read_phone()[0][1])}).json()["data"]["request"]
    assert (came["outcome"], came["by_text"], came["by_email"]) == ("over_limit", False, True)
    assert datetime.fromisoformat(came["until"]) == Case.objects.get().expires_at


def test_a_mail_that_is_over_the_limit_offers_what_works(post, citizen):
    had(citizen, "web", "email")
    rules = rules_with()
    asked = ask(citizen.code, ASKER, secret=None, rules=rules, channel=Channel.EMAIL)
    came = prove(asked.secret, code_in(post.newest(MAIL)), ASKER, rules=rules).came
    assert (came.decided, came.by_text, came.by_email) == (Outcome.OVER_LIMIT, True, False)


@pytest.mark.parametrize("channel", Channel)
def test_a_stranger_hears_nothing_of_what_others_asked_for(post, citizen, channel):
    rules, stranger, heard = rules_with(), Asker("198.51.100.9"), []
    for code in (citizen.code, "9999999999"):
        for _ in range(5):
            assert ask(code, ASKER, secret=None, rules=rules, channel=channel).sending is Sending.SENT
        heard.append(
            [ask(code, stranger, secret=None, rules=rules, channel=channel).sending for _ in range(6)]
        )
    assert heard == [[Sending.SENT] * 5 + [Sending.TOO_MANY]] * 2
    assert len(read_phone()) + len(post.deliver().mails) == 5
    later(hours=23)
    mine = ask(citizen.code, ASKER, secret=None, rules=rules, channel=channel)
    assert mine.sending is Sending.TOO_MANY
    later(hours=2)
    assert ask(citizen.code, stranger, secret=None, rules=rules, channel=channel).sending is Sending.SENT
    assert (
        len(read_phone() if channel is Channel.SMS else post.deliver().mails[5:]) == 1
    )  # what was not sent closed it no longer
