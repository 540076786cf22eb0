"""The OTP's derivation, what is accepted as one, and which budget forbids one."""

from uuid import UUID

import pytest

from caplai.domain import otp
from caplai.domain.issuing import DIGITS
from caplai.domain.issuing import Inputs as CaseInputs
from caplai.domain.issuing import derive as derive_password
from caplai.domain.otp import Budget, Budgets, Channel, Inputs, Spent, derive, exhausted, matches
from caplai.domain.replies import Texts, bind_to_origin, fill

KEY = bytes(range(32))
ID = UUID("00112233445566778899aabbccddeeff")


def test_it_is_frozen():
    """A text that was sent must be right after an upgrade, too. (Computed by hand from the docstring's formula.)"""
    import hashlib
    import hmac

    message = b"\x00\x00\x00\x01" + b"\0otp\x01" + ID.bytes + b"0123456789"
    number = int.from_bytes(hmac.new(KEY, message, hashlib.sha256).digest(), "big")
    assert derive(KEY, Inputs(1, ID, "0123456789")) == f"{number % 10**6:06}"
    with pytest.raises(ValueError, match="not known"):
        Inputs(2, ID, "0123456789")


def test_it_differs_by_request_code_and_key_and_from_the_password_of_a_case():
    one = derive(KEY, Inputs(1, ID, "0123456789"))
    others = [
        derive(KEY, Inputs(1, UUID(int=ID.int + 1), "0123456789")),
        derive(KEY, Inputs(1, ID, "0123456780")),
        derive(KEY[::-1], Inputs(1, ID, "0123456789")),
        derive_password(KEY, CaseInputs(1, ID, "0123456789", 6, DIGITS)),
    ]
    assert one not in others and len(one) == 6 and one.isdigit()


@pytest.mark.parametrize(
    "change", [lambda o: f" {o[:3]} {o[3:]} ", lambda o: f"{o[:3]}-{o[3:]}", lambda o: o]
)
def test_spaces_and_dashes_are_forgiven(change):
    inputs = Inputs(1, ID, "0123456789")
    assert matches(KEY, inputs, change(derive(KEY, inputs)))


@pytest.mark.parametrize("typed", ["", "x", "\ud800", "0" * 6000, "12345", "一二三四五六"])
def test_anything_else_is_wrong_and_nothing_raises(typed):
    assert not matches(KEY, Inputs(1, ID, "0123456789"), typed)


BUDGETS = Budgets(code_day=5, network_day=300, prefix_hour=1000, site_hour=20_000, unverified_least=500)


@pytest.mark.parametrize(
    ("spent", "budget"),
    [
        (Spent(), None),
        (Spent(asked=4, network=299, prefix=999, site=19_999), None),
        (Spent(asked=5), Budget.CODE),
        (Spent(network=300), Budget.NETWORK),
        (Spent(prefix=1000), Budget.PREFIX),
        (Spent(site=20_000), Budget.SITE),
        (Spent(settled=499, unverified=499), None),
        (Spent(settled=500, unverified=399), None),
        (Spent(settled=500, unverified=400), Budget.UNVERIFIED),
        (Spent(asked=5, site=20_000), Budget.SITE),  # what everybody is told comes first
        (Spent(code=1000), None),  # of others: whoever asks now must not learn that somebody did
        (Spent(phone=1000), None),  # a phone is known only where the code is: it changes no word
    ],
)
def test_which_budget_forbids_one(spent, budget):
    assert exhausted(spent, BUDGETS) == budget


@pytest.mark.parametrize(
    ("spent", "sms", "email"),
    [
        (Spent(code=4, phone=9, asked=9), False, False),
        (Spent(code=5), True, True),
        (Spent(phone=10), True, False),
    ],
)
def test_what_others_asked_for_silences_and_changes_no_word(spent, sms, email):
    assert otp.silenced(spent, BUDGETS, Channel.SMS) is sms
    assert otp.silenced(spent, BUDGETS, Channel.EMAIL) is email


def test_the_text_of_one_is_one_segment_and_bound_to_the_site():
    texts = Texts()
    bound = bind_to_origin(texts.otp, "dichvucong.baohiemxahoi.gov.vn")
    text = fill(bound, otp="123456")
    assert text == (
        "Ma xac thuc (OTP) cua ban la 123456. Khong cung cap cho bat ky ai."
        "\n@dichvucong.baohiemxahoi.gov.vn #123456"
    )
    assert bind_to_origin(texts.otp, "") == texts.otp
    configured = {"keyword": "BH", "command": "MK", "short_code": "8079", "portal": "VssID"}
    assert texts.check(**configured, host="dichvucong.baohiemxahoi.gov.vn") == []
    [problem] = texts.check(**configured, host="a" * 100)
    assert "texts.otp" in problem and "shorten" in problem
