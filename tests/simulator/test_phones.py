"""Phones and citizens: pure bookkeeping, without a wire."""

import asyncio
import json

import pytest

from caplai.simulator.citizens import Citizen, Citizens, read_citizens
from caplai.simulator.phones import Phones, State, read_number, show_number
from tests.simulator.esme import in_loop

PHONE = "84327111686"


@pytest.mark.parametrize(
    ("written", "msisdn"),
    [
        ("0327111686", PHONE),
        ("0327 111 686", PHONE),
        ("0327.111.686", PHONE),
        ("+84 327-111-686", PHONE),
        ("84327111686", PHONE),
        ("+33 6 12 34 56 78", "33612345678"),
        ("", None),
        ("8079", None),
        ("0327111686x", None),
        ("+0327111686", None),
        ("1" * 16, None),
        ("٠٣٢٧١١١٦٨٦", None),
    ],
)
def test_numbers_are_read_as_people_write_them(written, msisdn):
    assert read_number(written) == msisdn


def test_numbers_are_shown_as_at_home():
    assert show_number(PHONE) == "0327 111 686"
    assert show_number("33612345678") == "+33612345678"


def test_only_what_arrived_is_paid():
    phones = Phones(price=1000)
    sent, failed, _ = (phones.compose(PHONE, "8079", text) for text in ("a", "b", "c"))
    phones.sent(sent)
    phones.failed(failed, "ESME_RX_P_APPN")
    phones.receive(PHONE, "8079", "d")
    conversation = phones.conversation(PHONE)
    assert conversation.paid == 1000
    assert [m.state for m in conversation.messages] == ["sent", "failed", "sending", "received"]


def test_memory_is_bounded():
    phones = Phones(keep=3, most=2)
    for phone in ("84900000001", "84900000002", "84900000003"):
        for number in range(5):
            last = phones.compose(phone, "8079", str(number))
    assert [m.text for m in phones.conversation("84900000003").messages] == ["2", "3", "4"]
    assert not phones.conversation("84900000001").messages
    phones.sent(last)
    assert phones.conversation("84900000003").paid == 1000


def test_a_message_sent_from_a_forgotten_phone_changes_all_the_same():
    phones = Phones(most=1)
    message = phones.compose(PHONE, "8079", "a")
    phones.compose("84900000001", "8079", "b")
    phones.sent(message)
    assert message.state is State.SENT


def test_listeners_hear_of_their_phone_until_they_leave():
    phones, one, every = Phones(), [], []
    leave = phones.subscribe(lambda m: one.append((m.text, m.state)), PHONE)
    phones.subscribe(lambda m: every.append(m.text))
    message = phones.compose(PHONE, "8079", "a")
    phones.sent(message)
    phones.compose("84900000001", "8079", "b")
    leave()
    phones.receive(PHONE, "8079", "c")
    assert one == [("a", "sending"), ("a", "sent")]
    assert every == ["a", "a", "b", "c"]


@in_loop
async def test_a_reply_is_awaited_or_found():
    phones = Phones()
    phones.receive(PHONE, "8079", "an old one")
    asked = phones.compose(PHONE, "8079", "BH MK")
    waiting = asyncio.create_task(phones.wait_for_reply(PHONE, after=asked.id))
    await asyncio.sleep(0)
    phones.sent(asked)
    phones.receive("84900000001", "8079", "another's")
    assert not waiting.done()
    phones.receive(PHONE, "8079", "the answer")
    assert (await waiting).text == "the answer"
    assert (await phones.wait_for_reply(PHONE, after=asked.id)).text == "the answer"
    with pytest.raises(TimeoutError):
        await phones.wait_for_reply("84900000002", timeout=0.01)


def test_no_repr_shows_a_phone_or_a_text():
    phones = Phones()
    shown = repr(phones.compose(PHONE, "8079", "BH MK 0123456789"))
    shown += repr(phones.conversation(PHONE)) + repr(Citizen("Nguyễn Thị Lan", PHONE, "0123456789"))
    assert PHONE not in shown
    assert "0123456789" not in shown
    assert "Lan" not in shown


LAN = Citizen("Nguyễn Thị Lan", PHONE, "0123456789")
DUC = Citizen("Đỗ Văn Đức", "84912345678", "9876543210")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", [LAN, DUC]),
        ("nguyen lan", [LAN]),
        ("NGUYỄN", [LAN]),
        ("đỗ", [DUC]),
        ("do duc", [DUC]),
        ("0327 111", [LAN]),
        ("+84327", [LAN]),
        ("0912345678", [DUC]),
        ("0123456789", [LAN]),
        ("98765", [DUC]),
        ("nobody", []),
    ],
)
def test_citizens_are_found_as_people_type(wanted, found):
    assert Citizens([LAN, DUC]).search(wanted) == found


def test_a_search_shows_only_so_many():
    assert len(Citizens([LAN] * 100).search("lan", 20)) == 20


def test_a_family_shares_a_phone(tmp_path):
    file = tmp_path / "citizens.json"
    people = [{"name": "Lan", "phone": "0327111686", "code": "1"}, {"name": "Na", "phone": "+84327111686"}]
    file.write_text(json.dumps(people))
    assert [citizen.name for citizen in read_citizens(file).of_phone(PHONE)] == ["Lan", "Na"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not JSON"),
        ("{}", "a list"),
        ('[{"name": "Lan", "phone": "0327111686"}, {"name": "Na", "phone": "12"}]', "citizen 2"),
        ('[{"name": "Lan", "phone": "0327111686", "code": 123456789}]', "citizen 1"),
        ("[7]", "citizen 1"),
    ],
)
def test_a_bad_file_of_citizens_says_where(tmp_path, content, words):
    file = tmp_path / "citizens.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        read_citizens(file)
    assert "Lan" not in str(error.value)
