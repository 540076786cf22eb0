"""The verbs of a forgotten password: who is told an OTP, who proves it, what the budgets forbid."""

import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from django.db import OperationalError, connection, connections
from django.db.models import F

from caplai.domain.otp import Channel, Sending
from caplai.domain.policy import Outcome
from caplai.service import forgotten_facts, keys, locks
from caplai.service.arriving import signed_in
from caplai.service.forgotten import ALARM, again, ask, look, new_secret
from caplai.service.forgotten_facts import Asker
from caplai.service.forgotten_proof import Proof, prove
from caplai.service.operate import switch_service
from caplai.store.models import Account, Case, Device, Event, Guess, Key, Login, Outbox, Recovery, Switch
from tests.portal.forgetting import another, otp_of, read_phone, rules_with

pytestmark = pytest.mark.django_db(transaction=True)
ASKER = Asker("203.0.113.7")
UNKNOWN = "9999999999"
_HOUR = {"now": datetime.now(UTC), "hour": timedelta(hours=1)}


def later(**by):
    """Let time pass for every request."""
    step = timedelta(**by)
    Recovery.objects.update(
        created_at=F("created_at") - step, expires_at=F("expires_at") - step, asked_at=F("asked_at") - step
    )


def until_there_is_a_turn(verb):
    """What the verb says once it got its locks in time: who waited too long is told to try again (503), and does."""
    while True:
        try:
            return verb()
        except OperationalError as error:
            if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise


def test_the_otp_and_then_the_password_come_to_the_registered_phone(lan):
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    assert asked.sending is Sending.SENT
    [(to, text)] = read_phone()
    assert to == "84327000686"
    assert text == f"Ma xac thuc (OTP) cua ban la {otp_of(text)}. Khong cung cap cho bat ky ai."
    proved = prove(asked.secret, f" {otp_of(text)[:3]} {otp_of(text)[3:]}", ASKER, rules=rules)
    assert (proved.proof, proved.came.decided) == (Proof.DONE, Outcome.ISSUED)
    [(to, text)] = read_phone()
    assert to == "84327000686"
    assert text.startswith("Cap lai mat khau thanh cong. Mat khau moi: ") and len(text) == 49
    case = Case.objects.get()
    assert (case.account, case.channel, case.texts) == (lan.code, "web", 1)
    assert prove(asked.secret, otp_of(text), ASKER, rules=rules).proof is Proof.OVER
    assert look(asked.secret, rules=rules).came.decided is Outcome.ISSUED


def test_the_text_names_the_account_where_the_phone_has_several(lan):
    Account.objects.create(code="0123456780", phone=lan.phone, state="approved")
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    prove(asked.secret, otp_of(read_phone()[0][1]), ASKER, rules=rules)
    assert f"Tai khoan: {lan.code}. Mat khau moi: " in read_phone()[0][1]


def test_neither_otp_nor_secret_is_in_the_database(lan):
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])
    with connection.cursor() as cursor:
        for table in ("recovery", "outbox", "wording", "event", "django_session"):
            cursor.execute(f"select coalesce(string_agg(t::text, ' '), '') from {table} t")
            found = cursor.fetchone()[0]
            assert otp not in found and asked.secret not in found, table


@pytest.mark.parametrize("state", ["unknown", "pending", "closed"])
def test_others_are_answered_the_same_and_sent_nothing(lan, state):
    if state != "unknown":
        Account.objects.create(code=UNKNOWN, phone="+84327000687", state=state)
    rules = rules_with()
    hers, theirs = (ask(code, ASKER, secret=None, rules=rules) for code in (lan.code, UNKNOWN))
    assert hers.sending == theirs.sending is Sending.SENT
    assert [to for to, _ in read_phone()] == ["84327000686"]
    for left in (2, 1, 0):
        answers = [prove(one.secret, "000000x", ASKER, rules=rules) for one in (hers, theirs)]
        assert [(one.proof, one.tries) for one in answers] == [(Proof.WRONG, left)] * 2
    assert [look(one.secret, rules=rules).over for one in (hers, theirs)] == [True, True]
    assert Guess.objects.filter(network=ASKER.network).count() == 6
    assert Guess.objects.filter(account=lan.code).count() == 3


def test_even_the_right_digits_open_nothing_for_whom_no_otp_was_sent(lan, monkeypatch):
    rules = rules_with()
    asked = ask(UNKNOWN, ASKER, secret=None, rules=rules)
    monkeypatch.setattr("caplai.domain.otp.matches", lambda *_: True)
    assert prove(asked.secret, "123456", ASKER, rules=rules).proof is Proof.WRONG
    assert not Case.objects.exists()


def test_three_wrong_tries_end_it_and_the_right_one_comes_too_late(lan):
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])
    for _ in range(3):
        assert prove(asked.secret, another(otp), ASKER, rules=rules).proof is Proof.WRONG
    assert prove(asked.secret, otp, ASKER, rules=rules).proof is Proof.OVER
    assert Recovery.objects.get().ended_as == "tried_out"


def test_it_holds_five_minutes_and_for_its_own_browser_only(lan):
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])
    other = ask(lan.code, ASKER, secret=None, rules=rules)
    for secret in (other.secret, "x", "", None):
        assert prove(secret, otp, ASKER, rules=rules).proof in (Proof.WRONG, Proof.OVER)
    later(minutes=4, seconds=58)
    assert not look(asked.secret, rules=rules).over
    later(seconds=3)
    assert prove(asked.secret, otp, ASKER, rules=rules).proof is Proof.OVER
    assert read_phone() == []  # nor is what waited sent any more


def test_again_sends_the_same_one_after_the_pause_and_three_times_at_most(lan):
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    [(_, first)] = read_phone()
    for early in (
        again(asked.secret, ASKER, rules=rules),
        ask(lan.code, ASKER, secret=asked.secret, rules=rules),
    ):
        assert (early.sending, early.sent) == (Sending.SENT, False)
    assert read_phone() == []
    for _ in range(2):
        later(seconds=61)
        assert again(asked.secret, ASKER, rules=rules).sent
        assert read_phone() == [("84327000686", first)]
    later(seconds=61)
    assert not again(asked.secret, ASKER, rules=rules).sent
    assert look(asked.secret, rules=rules).again_at is None
    assert read_phone() == []
    assert prove(asked.secret, otp_of(first), ASKER, rules=rules).came.decided is Outcome.ISSUED


def test_another_code_in_the_same_browser_leaves_the_request_before(lan):
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])
    other = ask(UNKNOWN, ASKER, secret=asked.secret, rules=rules)
    assert other.secret != asked.secret
    same = ask(lan.code, ASKER, secret=None, others=[other.secret, asked.secret], rules=rules)
    assert (same.secret, same.sent) == (asked.secret, False)
    assert prove(asked.secret, otp, ASKER, rules=rules).proof is Proof.DONE


def test_of_a_form_that_was_sent_twice_at_once_both_find_one_request(lan):
    rules, secret, found = rules_with(), new_secret(), []

    def send():
        found.append(until_there_is_a_turn(lambda: ask(lan.code, ASKER, secret=secret, rules=rules)))
        connections.close_all()

    threads = [threading.Thread(target=send) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each.secret for each in found] == [secret] * 4
    assert sorted(each.sent for each in found) == [False, False, False, True]
    assert Recovery.objects.count() == len(read_phone()) == 1


@pytest.fixture
def within_an_hour():
    """The next whole hour is the same all the while: no such test begins shortly before or after one."""
    while not 5 < time.time() % 3600 < 3590:
        time.sleep(0.5)  # nothing tells of the hour but the clock


@pytest.mark.parametrize("budget", ["code_day", "network_day"])
def test_too_many_says_when_it_is_over(lan, within_an_hour, budget):
    rules = rules_with(budgets={budget: 2})
    for hours in (5, 3, 0):
        ask(lan.code, ASKER, secret=None, rules=rules_with())
        later(hours=hours)
    refused = ask(lan.code, ASKER, secret=None, rules=rules)
    assert refused.sending is Sending.TOO_MANY
    wait = refused.retry_at - datetime.now(UTC)
    assert timedelta(hours=21) < wait <= timedelta(hours=22)  # one of 0, one of 3, one of 8 hours ago
    later(seconds=wait.total_seconds() - 3600)
    assert ask(lan.code, ASKER, secret=None, rules=rules).sending is Sending.TOO_MANY
    later(hours=1)
    assert ask(lan.code, ASKER, secret=None, rules=rules).sending is Sending.SENT


def test_when_it_is_over_says_nothing_of_what_others_asked_for(lan, within_an_hour):
    rules, stranger = rules_with(budgets={"code_day": 2}), Asker("198.51.100.9")
    for asker, hours in ((ASKER, 9), (stranger, 3), (ASKER, 0), (stranger, 1)):
        ask(lan.code, asker, secret=None, rules=rules)
        later(hours=hours)
    refused = ask(lan.code, stranger, secret=None, rules=rules)
    wait = refused.retry_at - datetime.now(UTC)
    assert refused.sending is Sending.TOO_MANY
    assert timedelta(hours=20) < wait <= timedelta(hours=21)  # theirs of 4 hours ago, and of 1


def test_the_wishes_of_a_browser_count_wherever_it_is(lan, within_an_hour):
    rules, secrets = rules_with(budgets={"code_day": 2}), []
    for n in range(2):
        secrets.append(ask(lan.code, Asker(f"203.0.113.{n}"), secret=None, rules=rules).secret)
        Recovery.objects.update(ended_at=F("asked_at"), ended_as="tried_out")
        later(hours=2)
    for secret, others in ((secrets[0], secrets[1:]), (None, secrets)):
        refused = ask(lan.code, Asker("198.51.100.9"), secret=secret, others=others, rules=rules)
        assert refused.sending is Sending.TOO_MANY
        assert timedelta(hours=20) < refused.retry_at - datetime.now(UTC) <= timedelta(hours=21)


def test_a_secret_is_of_one_request_for_ever(lan):
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    Recovery.objects.update(ended_at=F("asked_at"), ended_as="tried_out")
    other = ask(lan.code, ASKER, secret=asked.secret, rules=rules)
    assert other.sent and other.secret != asked.secret


def test_a_wish_that_is_refused_leaves_the_request_before(lan):
    asked = ask(lan.code, ASKER, secret=None, rules=rules_with())
    otp, rules = otp_of(read_phone()[0][1]), rules_with(budgets={"network_day": 1})
    assert ask(UNKNOWN, ASKER, secret=asked.secret, rules=rules).sending is Sending.TOO_MANY
    assert prove(asked.secret, otp, ASKER, rules=rules).came.decided is Outcome.ISSUED


def test_a_phone_that_changed_meanwhile_proves_nothing(lan):
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])
    Account.objects.update(phone="+84327000999")
    assert prove(asked.secret, otp, ASKER, rules=rules).proof is Proof.WRONG
    assert not Case.objects.exists()


def test_a_family_phones_day_is_silent_for_it_changes_no_word(lan):
    rules = rules_with(budgets={"phone_day": 2})
    for n in range(3):
        code = f"012345670{n}"
        Account.objects.create(code=code, phone=lan.phone, state="approved")
        assert ask(code, ASKER, secret=None, rules=rules).sending is Sending.SENT
    assert len(read_phone()) == 2


def test_used_up_guesses_close_the_six_digits_of_an_otp_too(lan):
    rules = rules_with(signin={"guesses": 4})
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])
    Guess.objects.bulk_create(Guess(account=lan.code, network="x") for _ in range(4))
    assert prove(asked.secret, otp, ASKER, rules=rules).proof is Proof.WRONG
    assert ask(lan.code, ASKER, secret=None, rules=rules).sending is Sending.SENT
    assert read_phone() == []


def test_a_known_device_that_used_up_its_guesses_is_sent_what_an_unknown_one_is(lan):
    """Her own wrong passwords must not take from her what a stranger's device has."""
    login = Login.objects.create(username=lan.code, account=lan, password="!")
    token = signed_in(login, None)
    phone = Asker(ASKER.network, token)
    rules = rules_with(signin={"guesses": 4})
    device = Device.objects.get().pk
    Guess.objects.bulk_create(Guess(account=lan.code, network="x", device=device) for _ in range(4))
    asked = ask(lan.code, phone, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])
    assert prove(asked.secret, another(otp), phone, rules=rules).proof is Proof.WRONG
    assert Guess.objects.filter(device=None, account=lan.code).count() == 1
    assert prove(asked.secret, otp, phone, rules=rules).proof is Proof.DONE

    Guess.objects.bulk_create(Guess(account=lan.code, network="x") for _ in range(3))
    ask(lan.code, phone, secret=None, rules=rules)
    assert len(read_phone()) == 1  # the password alone: no OTP, for now both are used up


def test_a_network_with_too_many_failures_waits_and_nothing_is_counted(lan):
    rules = rules_with(signin={"network_failures": 2})
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])
    Guess.objects.bulk_create(Guess(network=ASKER.network) for _ in range(2))
    found = prove(asked.secret, otp, ASKER, rules=rules)
    assert found.proof is Proof.THROTTLED and found.retry_at is not None
    assert Recovery.objects.get().tries == 0
    assert prove(asked.secret, otp, Asker("198.51.100.1"), rules=rules).proof is Proof.DONE


def test_the_free_limit_says_when_and_whether_a_text_would_help(lan):
    rules = rules_with()
    for _ in range(2):
        asked = ask(lan.code, ASKER, secret=None, rules=rules)
        found = prove(asked.secret, otp_of(read_phone()[0][1]), ASKER, rules=rules)
        assert found.came.decided is Outcome.ISSUED
        Case.objects.filter(ended_at=None).update(ended_at=F("opened_at"), ended_as="used")
        read_phone()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    assert (
        prove(asked.secret, otp_of(read_phone()[0][1]), ASKER, rules=rules).came.decided is Outcome.OVER_LIMIT
    )
    standing = look(asked.secret, rules=rules)
    assert standing.came.until is not None and standing.came.by_text
    assert read_phone() == []  # the page tells it; no text does


def test_an_open_case_is_joined_by_whatever_door(lan, rules, conn):
    from caplai.domain.grammar import Reissue
    from caplai.service.reissue import reissue
    from caplai.service.requests import ReplyTo, Request

    with conn.transaction():
        reissue(
            conn,
            [
                Request(
                    Reissue(lan.code), "sms", lan.phone, lan.phone, ReplyTo("viettel", "8079", "84327000686")
                )
            ],
            rules,
        )
    [(_, by_sms)] = read_phone()
    mine = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=mine)
    assert prove(asked.secret, otp_of(read_phone()[0][1]), ASKER, rules=mine).came.decided is Outcome.JOINED
    [(_, text)] = read_phone()
    assert text[-6:] in by_sms
    assert Case.objects.get().texts == 2


def test_choosing_at_once_sends_no_password(lan):
    rules = rules_with(choose_at_once=True)
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    found = prove(asked.secret, otp_of(read_phone()[0][1]), ASKER, rules=rules)
    case = Case.objects.get()
    assert (found.login.username, found.case_id, case.texts) == (lan.code, case.id, 0)
    assert read_phone() == []


def test_a_closed_service_says_so_before_it_sends(lan):
    switch_service(False)
    assert ask(lan.code, ASKER, secret=None, rules=rules_with()).sending is Sending.CLOSED
    assert not Recovery.objects.exists() and not Outbox.objects.exists()


@pytest.mark.parametrize(
    ("budget", "askers", "codes", "sending"),
    [
        ("code_day", lambda n: "203.0.113.7", lambda n: "0123456789", Sending.TOO_MANY),
        ("code_day", lambda n: f"203.0.{n}.7", lambda n: "0123456789", Sending.SENT),
        ("network_day", lambda n: "203.0.113.7", lambda n: f"{n:010}", Sending.TOO_MANY),
        ("prefix_hour", lambda n: f"203.0.113.{n}", lambda n: f"{n:010}", Sending.BUSY),
        ("prefix_hour", lambda n: f"2001:db8:1:{n}::/64", lambda n: f"{n:010}", Sending.BUSY),
        ("site_hour", lambda n: f"203.0.{n}.7", lambda n: f"{n:010}", Sending.BUSY),
    ],
    ids=["code", "code-of-others", "network", "prefix-v4", "prefix-v6", "site"],
)
def test_sixteen_at_once_get_no_more_than_a_budget_has(lan, budget, askers, codes, sending):
    Account.objects.exclude(code=lan.code).delete()
    Account.objects.bulk_create(
        Account(code=f"{n:010}", phone=f"+8432700{n:04}", state="approved") for n in range(16)
    )
    rules, said, begin = rules_with(budgets={budget: 3}), [], threading.Barrier(16)

    def one(n):
        begin.wait()
        asked = until_there_is_a_turn(lambda: ask(codes(n), Asker(askers(n)), secret=None, rules=rules))
        said.append(asked.sending)
        connections.close_all()

    threads = [threading.Thread(target=one, args=[n]) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == sorted([Sending.SENT] * 3 + [sending] * 13)
    assert len(read_phone()) == 3


def test_a_browser_that_changes_its_network_is_told_of_its_own_wishes(lan):
    rules, kept = rules_with(), []
    for n in range(5):
        asked = ask(lan.code, Asker(f"203.0.{n}.7"), secret=None, others=kept, rules=rules)
        kept.append(asked.secret)
        later(minutes=6)
    last = ask(lan.code, Asker("203.0.99.7"), secret=None, others=kept, rules=rules)
    assert last.sending is Sending.TOO_MANY
    assert ask(lan.code, Asker("203.0.99.7"), secret=None, rules=rules).sending is Sending.SENT


def test_only_a_text_that_may_be_sent_waits_for_the_sites_lock_and_two_seconds(lan, conn):
    rules = rules_with()
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])
    with conn.transaction():
        locks.take(conn, [forgotten_facts.SITE])
        full = rules_with(budgets={"network_day": 1})
        assert ask(UNKNOWN, ASKER, secret=None, rules=full).sending is Sending.TOO_MANY
        assert ask(UNKNOWN, ASKER, secret=None, rules=rules, channel=Channel.EMAIL).sending is not None
        assert prove(asked.secret, otp, ASKER, rules=rules).proof is Proof.DONE
        with pytest.raises(OperationalError, match="lock timeout"):
            ask(UNKNOWN, ASKER, secret=None, rules=rules)
    assert ask(UNKNOWN, ASKER, secret=None, rules=rules).sending is Sending.SENT


def test_wishes_for_unknown_codes_do_not_lengthen_the_sites_sum(lan, conn):
    conn.execute(
        "insert into recovery (id, code, channel, network, prefix, secret_hash, key, version, created_at, expires_at,"
        " asked_at) select gen_random_uuid(), n, 'sms', 'x', 'x', sha256(n::text::bytea), 'k', 1, now(), now(), now()"
        " from generate_series(1, 5000) n"
    )
    conn.execute("analyze recovery")
    plan = conn.execute("explain (analyze, costs off, timing off) " + forgotten_facts.SENT_BY_SITE, _HOUR)
    lines = "\n".join(line for (line,) in plan)
    assert "recovery_sent" in lines and "Rows Removed" not in lines, lines


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_sixteen_tries_at_once_prove_once_and_count_three(lan, is_right):
    rules, found, begin = rules_with(), [], threading.Barrier(16)
    asked = ask(lan.code, ASKER, secret=None, rules=rules)
    otp = otp_of(read_phone()[0][1])

    def one(n):
        begin.wait()
        typed, asker = otp if is_right else another(otp), Asker(f"203.0.{n}.7")
        proved = until_there_is_a_turn(lambda: prove(asked.secret, typed, asker, rules=rules))
        found.append(proved.proof)
        connections.close_all()

    threads = [threading.Thread(target=one, args=[n]) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = {Proof.DONE: 1, Proof.OVER: 15} if is_right else {Proof.WRONG: 3, Proof.OVER: 13}
    assert Counter(found) == counted
    assert Case.objects.count() == len(read_phone()) == is_right
    assert Guess.objects.count() == (0 if is_right else 3)


@pytest.mark.parametrize(
    ("state", "sending"), [("sent", Sending.BUSY), ("ready", Sending.SENT), ("expired", Sending.SENT)]
)
def test_what_no_carrier_took_is_no_sign_of_pumping(lan, state, sending):
    rules = rules_with(budgets={"unverified_least": 3, "unverified_percent": 80})
    for n in range(3):
        Account.objects.create(code=f"000000000{n}", phone=f"+8432700000{n}", state="approved")
        ask(f"000000000{n}", Asker(f"203.0.{n}.1"), secret=None, rules=rules)
    Outbox.objects.update(state=state)
    later(minutes=6)
    assert ask(lan.code, ASKER, secret=None, rules=rules).sending is sending
    assert Event.objects.filter(kind="otp_budget").exists() == (sending is Sending.BUSY)


def test_unverified_messages_close_it_for_everybody_and_are_told_once(lan, caplog):
    rules = rules_with(budgets={"unverified_least": 3, "unverified_percent": 80})
    for n in range(3):
        Account.objects.create(code=f"000000000{n}", phone=f"+8432700000{n}", state="approved")
        assert ask(f"000000000{n}", Asker(f"203.0.{n}.1"), secret=None, rules=rules).sending is Sending.SENT
    assert ask(UNKNOWN, ASKER, secret=None, rules=rules).sending is Sending.SENT  # they still have their time
    Outbox.objects.update(state="sent")
    later(minutes=6)
    for code in (lan.code, UNKNOWN, lan.code):
        assert ask(code, ASKER, secret=None, rules=rules).sending is Sending.BUSY
    assert Event.objects.get(kind="otp_budget").data == {"budget": "unverified"}
    assert Switch.objects.get(name=ALARM).value["budget"] == "unverified"
    assert caplog.text.count("is used up") == 1
    later(minutes=60)
    assert ask(lan.code, ASKER, secret=None, rules=rules).sending is Sending.SENT


def test_a_key_is_needed_while_a_request_lives(lan, conn, rules):
    asked = ask(lan.code, ASKER, secret=None, rules=rules_with())
    assert asked.secret
    key = Recovery.objects.get().key
    Key.objects.get_or_create(kind="issuing", id=key, defaults={"fingerprint": "x", "state": "retired"})
    known = next(each for each in keys.look(conn, timedelta(minutes=1)).keys if each.kind == "issuing")
    assert keys.still_needed(conn, known, timedelta(hours=12)) == "1 one-time codes"
    assert keys.in_use(conn)["issuing", key] == "1 one-time codes"
    later(minutes=6)
    assert keys.still_needed(conn, known, timedelta(hours=12)) is None
