"""The one verb: requests in, outcomes, cases and replies out, on a real database."""

import threading
from datetime import timedelta

import psycopg
import pytest
from django.conf import settings
from django.db.models import F

from caplai.service.deliver import compose
from caplai.service.reissue import reissue_inbox, reissue_one_by_one
from caplai.service.requests import Handover
from caplai.store import queues
from caplai.store.db import connect
from caplai.store.models import Account, Case, Guess, Inbox, Outbox, Switch

LAN, PHONE = "0123456789", "84327000686"


def receive(conn, text, source=PHONE, link="viettel", destination="8079", ton=1):
    queues.accept(conn, link, None, [queues.Arrival(source, ton, 1, destination, 0, text)], join=None)


def text(conn, rules, *texts, source=PHONE, **where):
    """Send these texts one after the other and return the replies, as the phone reads them."""
    for each in texts:
        receive(conn, each, source, **where)
        while reissue_inbox(conn, rules, 100):
            pass
    return replies(conn)


def replies(conn, link="viettel"):
    claimed = queues.claim_outbox(conn, link, "test", 1000, timedelta(seconds=60))
    queues.settle_outbox(conn, "test", [queues.Settled(due.id, "sent", 0) for due in claimed])
    return [compose(due, settings.KEYRING.ring("issuing")) for due in claimed]


def outcomes():
    return list(Inbox.objects.order_by("id").values_list("outcome", flat=True))


def password(reply):
    return reply.split("Mat khau: ")[1].split(".")[0]


def later(**delta):
    """As if everything so far had happened earlier."""
    ago = timedelta(**delta)
    Case.objects.update(
        opened_at=F("opened_at") - ago, expires_at=F("expires_at") - ago, ended_at=F("ended_at") - ago
    )
    Inbox.objects.update(received_at=F("received_at") - ago, decided_at=F("decided_at") - ago)


def test_a_text_brings_a_password_and_the_next_ones_the_same(conn, rules, lan):
    first, second = text(conn, rules, f"BH MK {LAN}", f"bh mk {{{LAN}}}")
    assert first == second
    assert first.startswith(f"Cap lai mat khau thanh cong. Tai khoan: {LAN}/Mat khau: ")
    assert password(first).isdigit()
    assert len(password(first)) == 6
    assert outcomes() == ["issued", "joined"]
    case = Case.objects.get()
    assert (case.account, case.phone, case.texts, case.channel) == (LAN, "+84327000686", 2, "sms")
    assert (case.length, case.alphabet, case.ended_at) == (6, "0123456789", None)


def test_what_is_handed_over_is_what_a_claim_would_have_brought(conn, rules, lan):
    """An issued one, one that joins it, two refusals; and a link that takes no more."""
    receive(conn, f"BH MK {LAN}")
    reissue_inbox(conn, rules, 100)  # so that the case of the next is one that was read
    replies(conn)
    for words, source in (
        (f"BH MK {LAN}", PHONE),
        ("BH MK 1", PHONE),
        (f"BH MK {LAN}", "84911222333"),
        ("BH", "84911222333"),
    ):
        receive(conn, words, source)
    handover = Handover("me", timedelta(seconds=90), {"viettel": 3})
    assert reissue_inbox(conn, rules, 100, handover) == 4
    states = Outbox.objects.order_by("id").values_list("state", "claimed_by", "attempts")
    assert [*states][1:] == [("claimed", "me", 1)] * 3 + [("ready", None, 0)]
    assert len(replies(conn)) == 1  # nobody else can claim them
    queues.release_unheld(conn, "viettel", "me", [])
    claimed = queues.claim_outbox(conn, "viettel", "me", 10, timedelta(seconds=90))
    for handed, due in zip(handover.dues, claimed, strict=True):
        assert 0 <= handed.age <= due.age and abs(handed.created_at - due.created_at) < timedelta(seconds=1)
        due.age, due.created_at, due.attempts = handed.age, handed.created_at, due.attempts - 1
        assert [getattr(due, name) for name in due.__slots__] == [
            getattr(handed, name) for name in due.__slots__
        ]


def test_the_reply_says_the_minute_until_which_it_holds(conn, rules, lan):
    [reply] = text(conn, rules, f"BH MK {LAN}")
    case = Case.objects.get()
    assert timedelta(hours=24) <= case.expires_at - case.opened_at < timedelta(hours=24, minutes=1)
    assert case.expires_at.second == case.expires_at.microsecond == 0
    said = case.expires_at + timedelta(hours=7)
    assert reply.endswith(f"Dung truoc {said:%H:%M %d/%m/%Y}.")


@pytest.mark.parametrize(
    ("body", "source"),
    [
        (f"BH MK {LAN}", "84327000687"),  # another phone
        ("BH MK 9876543210", PHONE),  # no such code
        ("BH MK 0000000001", PHONE),  # this phone's, but not approved
        ("BH MK 0000000002", PHONE),  # closed
    ],
)
def test_every_way_of_not_belonging_together_has_the_same_answer(conn, rules, lan, body, source):
    Account.objects.create(code="0000000001", phone="+84327000686", state="pending")
    Account.objects.create(code="0000000002", phone="+84327000686", state="closed")
    assert text(conn, rules, body, source=source) == [
        "So dien thoai va ma so BHXH khong khop hoac chua dang ky giao dich dien tu voi co quan BHXH."
    ]
    assert outcomes() == ["mismatch"]
    assert not Case.objects.exists()


def test_what_is_not_understood_says_how_to_write_it(conn, rules, lan):
    bad_code, bad_syntax, nothing = text(conn, rules, "BH MK 123456789", "BH LOI", "xin chao")
    assert bad_code.startswith("Ma so BHXH phai gom 10 chu so. Soan: BH MK <ma so BHXH> gui 8079.")
    assert bad_syntax == nothing
    assert bad_syntax.startswith("Tin nhan sai cu phap.")
    assert outcomes() == ["bad_code", "bad_syntax", "bad_syntax"]


def test_another_agencys_keyword_gets_silence(conn, rules, lan):
    assert text(conn, rules, "VIN 123456", "MKH") == []
    assert outcomes() == ["other_agency", "other_agency"]


def test_two_machines_do_not_answer_each_other_for_ever(conn, rules, lan):
    assert len(text(conn, rules, *["Tin nhan sai cu phap."] * 9)) == 5
    assert outcomes() == ["bad_syntax"] * 5 + ["silenced"] * 4
    # What would succeed is never met with silence, and an hour later errors are answered again.
    assert len(text(conn, rules, f"BH MK {LAN}")) == 1
    later(hours=1, seconds=1)
    assert len(text(conn, rules, "BH")) == 1


def test_the_loop_guard_holds_within_one_batch(conn, rules, lan):
    for _ in range(9):
        receive(conn, "BH")
    reissue_inbox(conn, rules, 100)
    assert outcomes() == ["bad_syntax"] * 5 + ["silenced"] * 4


def test_a_case_is_sent_five_times_at_most_and_then_says_until_when(conn, rules, lan):
    *five, sixth = text(conn, rules, *[f"BH MK {LAN}"] * 6)
    assert len(set(five)) == 1
    assert sixth.startswith("Da qua so lan cho phep. Thu lai sau ")
    assert five[0].split("Dung truoc ")[1].rstrip(".") in sixth
    assert outcomes() == ["issued"] + ["joined"] * 4 + ["over_limit"]
    assert Case.objects.get().texts == 5


def test_joining_prolongs_nothing_and_after_its_time_a_new_case_opens(conn, rules, lan):
    [first] = text(conn, rules, f"BH MK {LAN}")
    later(hours=23)
    [same] = text(conn, rules, f"BH MK {LAN}")
    later(hours=2)
    [fresh] = text(conn, rules, f"BH MK {LAN}")
    assert password(first) == password(same)
    assert outcomes() == ["issued", "joined", "issued"]
    old, new = Case.objects.order_by("opened_at")
    assert (old.ended_as, new.ended_as) == ("expired", None)
    assert old.ended_at == old.expires_at
    assert new.id != old.id
    assert fresh != first


def end_case(how="used"):
    from django.utils import timezone

    Case.objects.filter(ended_at=None).update(ended_at=timezone.now(), ended_as=how)


def test_three_new_cases_a_day_for_an_account(conn, rules, lan):
    for _ in range(3):
        text(conn, rules, f"BH MK {LAN}")
        end_case()
    [fourth] = text(conn, rules, f"BH MK {LAN}")
    assert fourth.startswith("Da qua so lan cho phep.")
    assert outcomes() == ["issued"] * 3 + ["over_limit"]
    later(days=1)
    text(conn, rules, f"BH MK {LAN}")
    assert outcomes()[-1] == "issued"


def test_a_phone_has_five_a_day_for_each_account_it_serves(conn, rules):
    for n in range(7):
        Account.objects.create(code=f"{n:010}", phone="+84327000686", state="approved")
    Account.objects.filter(code__gte="0000000001").update(phone="+84327999999")
    # One account on this phone today; the earlier ones moved away, but their cases were this phone's.
    for n in range(7):
        Account.objects.filter(code=f"{n:010}").update(phone="+84327000686")
        text(conn, rules, f"BH MK {n:010}")
        end_case()
        Account.objects.filter(code=f"{n:010}").update(phone="+84327999999")
    assert outcomes() == ["issued"] * 5 + ["over_limit"] * 2


def test_a_phone_of_two_accounts_has_twice_as_many(conn, rules):
    for n in range(2):
        Account.objects.create(code=f"{n:010}", phone="+84327000686", state="approved")
    for n in (0, 1) * 3:
        text(conn, rules, f"BH MK {n:010}")
        end_case()
    assert outcomes() == ["issued"] * 6


def test_a_strangers_texts_spend_nothing_of_the_owners(conn, rules, lan):
    text(conn, rules, *[f"BH MK {LAN}"] * 20, source="84911111111")
    text(conn, rules, f"BH MK {LAN}")
    assert outcomes()[-1] == "issued"


def test_a_closed_service_says_where_to_go(conn, rules, lan):
    Switch.objects.create(name="service", value={"open": False})
    [reply] = text(conn, rules, f"BH MK {LAN}")
    assert reply.startswith("Dich vu tin nhan tam dung.")
    assert outcomes() == ["closed"]


def test_after_strangers_used_up_the_guesses_the_next_case_is_long(conn, rules, lan):
    for _ in range(20):
        Guess.objects.create(account=LAN, network="1.2.3.4")
    [reply] = text(conn, rules, f"BH MK {LAN}")
    assert len(password(reply)) == 10
    assert Case.objects.get().length == 10


def test_a_six_digit_case_whose_guesses_are_used_up_is_replaced_by_a_long_one(conn, rules, lan):
    [short] = text(conn, rules, f"BH MK {LAN}")
    for _ in range(20):
        Guess.objects.create(account=LAN, network="1.2.3.4")
    long, same = text(conn, rules, f"BH MK {LAN}", f"BH MK {LAN}")
    assert len(password(short)) == 6
    assert len(password(long)) == 10
    assert long == same
    assert list(Case.objects.order_by("opened_at").values_list("ended_as", "texts")) == [
        ("guessed_out", 1),
        (None, 2),
    ]


def test_a_rise_of_failures_across_the_site_makes_new_cases_long(conn, rules, lan):
    Switch.objects.create(name="guess_alarm", value={"until": "2999-01-01T00:00:00Z"})
    [reply] = text(conn, rules, f"BH MK {LAN}")
    assert len(password(reply)) == 10


def test_answers_go_back_by_the_link_and_number_they_came_by(conn, rules, lan):
    receive(conn, f"BH MK {LAN}", source="0327000686", ton=2)
    receive(conn, "hello", source="VINAPHONE", ton=5)
    reissue_inbox(conn, rules, 10)
    known, alphanumeric = Outbox.objects.order_by("id")
    assert (known.link, known.sender, known.destination) == ("viettel", "8079", "84327000686")
    assert (known.destination_ton, known.destination_npi) == (None, None)
    assert (alphanumeric.destination, alphanumeric.destination_ton) == ("VINAPHONE", 5)


def sixteen_at_once(work):
    """Run work(n) in sixteen threads that start together."""
    start = threading.Barrier(16)

    def run(n):
        with connect() as connection:
            start.wait()
            work(connection, n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("how", ["one batch", "sixteen connections"])
def test_sixteen_at_once_for_one_account_get_one_case_and_five_texts(conn, rules, lan, how):
    for _ in range(16):
        receive(conn, f"BH MK {LAN}")
    if how == "one batch":
        reissue_inbox(conn, rules, 100)
    else:
        sixteen_at_once(lambda connection, n: reissue_inbox(connection, rules, 1))
    assert sorted(outcomes()) == ["issued"] + ["joined"] * 4 + ["over_limit"] * 5 + ["silenced"] * 6
    assert Case.objects.get().texts == 5
    assert len({reply for reply in replies(conn) if "thanh cong" in reply}) == 1


@pytest.mark.parametrize("how", ["one batch", "sixteen connections"])
def test_sixteen_accounts_on_one_phone_with_a_limit_of_five_get_five(conn, rules, how):
    """Account locks alone would let all sixteen past: each is another account."""
    for n in range(16):
        Account.objects.create(code=f"{n:010}", phone="+84327000686", state="approved")
    from dataclasses import replace

    from caplai.domain.policy import Limit, Limits

    # The phone serves sixteen accounts, which would multiply its limit: take one that is less than one each.
    rules = replace(rules, limits=Limits(phone=(Limit(1, timedelta(days=1)),)))
    Case.objects.bulk_create(
        Case(
            account=f"{n:010}",
            phone="+84327000686",
            channel="sms",
            key="k",
            version=1,
            length=6,
            alphabet="0123456789",
            opened_at=now(),
            expires_at=now(),
            ended_at=now(),
            ended_as="used",
        )
        for n in range(11)
    )
    for n in range(16):
        receive(conn, f"BH MK {n:010}")
    if how == "one batch":
        reissue_inbox(conn, rules, 100)
    else:
        sixteen_at_once(lambda connection, n: reissue_inbox(connection, rules, 1))
    assert outcomes().count("issued") == 5
    assert Case.objects.filter(ended_at=None).count() == 5


def test_an_inbox_that_cannot_be_read_is_not_asked_for_each_of_its_messages(conn, rules):
    with connect() as other, other.transaction():
        other.execute("lock table inbox in access exclusive mode")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            reissue_one_by_one(conn, rules, 10)


def now():
    from django.utils import timezone

    return timezone.now()


def test_a_password_is_nowhere_in_the_database(conn, rules, lan):
    [reply] = text(conn, rules, f"BH MK {LAN}")
    for (table,) in conn.execute("select tablename from pg_tables where schemaname = 'public'").fetchall():
        for (row,) in conn.execute(f'select t::text from "{table}" t').fetchall():
            assert password(reply) not in row.replace(LAN, "")
