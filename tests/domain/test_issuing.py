"""The derived password: the same for ever, different for everything else, even, and told to nobody."""

import hashlib
import hmac
import itertools
from collections import Counter
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caplai.domain.issuing import (
    DIGITS,
    LETTERS,
    Inputs,
    Keyring,
    derive,
    guessable,
    matches,
    new_case_ids,
)

KEY = bytes(range(32))
CASE = UUID("00112233-4455-6677-8899-aabbccddeeff")
INPUTS = Inputs(version=1, case_id=CASE, account="0123456789", length=6, alphabet=DIGITS)


def test_the_derivation_is_the_documented_one() -> None:
    """Written out by hand from the docstring; a change of it needs a new version."""
    message = (
        b"\x01"
        + (b"\x00\x10" + bytes.fromhex("00112233445566778899aabbccddeeff"))
        + (b"\x00\x0a" + b"0123456789")
        + (b"\x00\x01" + b"\x06")
        + (b"\x00\x0a" + b"0123456789")
    )
    seed = hmac.new(KEY, b"\x00\x00\x00\x01" + message, hashlib.sha256).hexdigest()
    assert derive(KEY, INPUTS) == f"{int(seed, 16) % 10**6:06}" == "081243"


def test_passwords_of_running_cases_never_change() -> None:
    """Golden values: whoever breaks these locks out everybody who has an open case."""
    assert derive(KEY, replace(INPUTS, length=10, alphabet=LETTERS)) == "CKCNPMK7NT"
    assert (
        derive(KEY, replace(INPUTS, length=32, alphabet=DIGITS + LETTERS[5:]))
        == "J1TMKN76VCK48F2K9F6RH09HXF5VKN5J"
    )


@pytest.mark.parametrize(
    "other",
    [
        replace(INPUTS, case_id=UUID(int=CASE.int + 1)),
        replace(INPUTS, account="0123456788"),
        replace(INPUTS, alphabet="9876543210"),
        replace(INPUTS, length=7),
    ],
)
def test_every_input_matters(other: Inputs) -> None:
    assert derive(KEY, other)[:6] != derive(KEY, INPUTS)
    assert derive(KEY, other) == derive(KEY, other)


def test_the_key_matters() -> None:
    assert derive(bytes(32), INPUTS) != derive(KEY, INPUTS)


def test_fields_do_not_run_into_one_another() -> None:
    shifted = replace(INPUTS, account="01234567890", alphabet="123456789A")
    unshifted = replace(INPUTS, account="0123456789", alphabet="0123456789A")
    assert derive(KEY, shifted) != derive(KEY, unshifted)


@pytest.mark.parametrize("alphabet", [DIGITS, LETTERS])
def test_every_character_is_as_likely_in_every_place(alphabet: str) -> None:
    passwords = [
        derive(KEY, replace(INPUTS, case_id=UUID(int=case), alphabet=alphabet)) for case in range(10_000)
    ]
    expected = len(passwords) / len(alphabet)
    for place in range(6):
        counts = Counter(password[place] for password in passwords)
        assert set(counts) == set(alphabet)
        chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
        assert chi_square < 45  # beyond the 99.98th percentile of 16 degrees of freedom; the cases are fixed


@given(
    st.uuids(),
    st.text(min_size=1).filter(lambda text: text.isascii()),
    st.integers(6, 32),
    st.sampled_from([DIGITS, LETTERS]),
)
def test_a_password_has_its_length_and_alphabet_and_matches(
    case_id: UUID, account: str, length: int, alphabet: str
) -> None:
    inputs = Inputs(1, case_id, account, length, alphabet)
    password = derive(KEY, inputs)
    assert len(password) == length
    assert set(password) <= set(alphabet)
    assert matches(KEY, inputs, password)
    assert matches(KEY, inputs, f" {password[:3]} {password[3:]}\n")
    assert not matches(KEY, inputs, password[:-1])
    assert not matches(KEY, inputs, password + alphabet[0])
    swapped = alphabet[(alphabet.index(password[0]) + 1) % len(alphabet)] + password[1:]
    assert not matches(KEY, inputs, swapped)


def test_letters_may_be_typed_in_either_case_if_the_alphabet_has_one() -> None:
    upper = replace(INPUTS, alphabet=LETTERS)
    assert matches(KEY, upper, derive(KEY, upper).lower())
    lower = replace(INPUTS, alphabet=LETTERS.lower())
    assert matches(KEY, lower, derive(KEY, lower).upper())
    both = replace(INPUTS, alphabet="ABCDEFGHIJabcdefghij")
    assert not matches(KEY, both, derive(KEY, both).swapcase())
    assert matches(KEY, both, derive(KEY, both))


@given(st.text(st.characters(exclude_categories=())))
@example("\ud800")
def test_any_candidate_gets_an_answer(candidate: str) -> None:
    assert matches(KEY, INPUTS, candidate) == ("".join(candidate.split()) == derive(KEY, INPUTS))


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 0},
        {"version": 2},
        {"account": ""},
        {"length": 5},
        {"length": 33},
        {"alphabet": "012345678"},
        {"alphabet": "0123456789" * 2},
        {"alphabet": "0123456789 "},
        {"alphabet": "0123456789\n"},
    ],
    ids=str,
)
def test_inputs_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"version|account|password|alphabet") as refused:
        replace(INPUTS, **wrong)  # type: ignore[arg-type]
    assert INPUTS.account not in str(refused.value)


def test_the_long_alphabet_has_no_look_alikes() -> None:
    assert not set(LETTERS) & set("0ODQ1ILl2Z5S8BUW")
    assert not set(LETTERS) & set("AEIOUY")
    assert len(set(LETTERS)) ** 10 > 2**40


def test_case_ids_are_random_in_all_their_bits() -> None:
    ids = list(itertools.islice(new_case_ids(), 600))
    assert len(set(ids)) == len(ids)
    ones = [sum(case_id.int >> bit & 1 for case_id in ids) for bit in range(128)]
    assert min(ones) > 0
    assert max(ones) < len(ids)


class TestKeyring:
    ring = Keyring({"2026a": KEY, "2025b": bytes(32)}, active="2026a")

    def test_keys_by_id(self) -> None:
        assert self.ring.active == "2026a"
        assert self.ring.get("2026a") == KEY
        assert self.ring.get("2025b") == bytes(32)
        assert self.ring.get("destroyed") is None

    def test_no_key_is_shown(self) -> None:
        assert repr(self.ring) == str(self.ring) == "Keyring(ids=['2025b', '2026a'], active='2026a')"

    def test_it_cannot_be_changed_from_outside(self) -> None:
        keys = {"a": KEY}
        ring = Keyring(keys, "a")
        keys["b"] = KEY
        assert ring.get("b") is None
        with pytest.raises(TypeError):
            ring.keys["b"] = KEY  # type: ignore[index]

    def test_the_active_key_must_be_there(self) -> None:
        with pytest.raises(ValueError, match="active issuing key 'b'"):
            Keyring({"a": KEY}, "b")

    def test_a_short_key_is_refused_by_name_and_not_shown(self) -> None:
        with pytest.raises(ValueError, match="issuing key 'b' is too short") as refused:
            Keyring({"a": KEY, "b": b"secret"}, "a")
        assert "secret" not in str(refused.value)
        with pytest.raises(ValueError, match="too short"):
            derive(b"secret", INPUTS)


def test_a_log_never_shows_the_account() -> None:
    assert INPUTS.account not in repr(replace(INPUTS, alphabet=LETTERS))


def test_six_digits_can_be_guessed_and_the_long_form_cannot():
    assert guessable(6, DIGITS)
    assert guessable(11, DIGITS)
    assert not guessable(12, DIGITS)
    assert not guessable(10, LETTERS)
