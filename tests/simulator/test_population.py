"""The made-up nation: no code twice, the same file for the same seed, and rows that an import takes."""

import csv
import io
import itertools
import re
from collections import Counter

import pytest
from django.contrib.auth.hashers import check_password
from hypothesis import given
from hypothesis import strategies as st

from caplai.domain import msisdn
from caplai.domain.foreign_hash import read
from caplai.simulator.population import CODES, Codes, accounts, password_of

SEEDS = [Codes(seed) for seed in (0, 1, -7)]
COUNTERS = st.integers(0, CODES - 1)


def rows(*given):
    return list(csv.DictReader(io.StringIO(b"".join(accounts(*given)).decode())))


@given(st.sampled_from(SEEDS), st.sets(COUNTERS, max_size=200))
def test_no_two_counters_meet_in_one_code(codes, counters):
    made = {codes[counter] for counter in counters}
    assert len(made) == len(counters)
    assert all(0 <= code < CODES for code in made)


@given(st.sampled_from(SEEDS), COUNTERS)
def test_each_step_can_be_undone(codes, counter):
    """Which is why no two meet: from the code back to its counter."""
    first, second, third = codes._rounds
    high, low = divmod(codes[counter], 100_000)
    high = (high - third[low]) % 100_000
    low = (low - second[high]) % 100_000
    high = (high - first[low]) % 100_000
    assert high * 100_000 + low == counter


def test_codes_of_neighbours_have_nothing_in_common():
    codes = [SEEDS[0][counter] for counter in range(30_000)]
    assert len(set(codes)) == len(codes)
    rises = sum(a < b for a, b in itertools.pairwise(codes))
    assert 14_000 < rises < 16_000
    assert len({code // 10**9 for code in codes}) == 10


def test_a_seed_repeats_the_file_and_fewer_are_its_beginning():
    whole = b"".join(accounts(12_000, 3))
    assert whole == b"".join(accounts(12_000, 3))
    assert whole.startswith(b"".join(accounts(7_001, 3)))
    assert whole != b"".join(accounts(12_000, 4))
    assert whole.count(b"\n") == 12_001
    assert b"".join(accounts(0)) == b"code,phone,email,state\n"


def test_people_are_as_in_life():
    people = rows(20_000, 1)
    assert len({person["code"] for person in people}) == 20_000
    assert all(len(person["code"]) == 10 for person in people)
    phones = [msisdn.parse(person["phone"]) for person in people]
    assert None not in phones
    families = Counter(Counter(phones).values())
    assert families[1] > families[2] > families[4] > 0
    states = Counter(person["state"] for person in people)
    assert states["approved"] > 19_200 and 300 < states["pending"] < 500 and 120 < states["closed"] < 280
    assert 2_000 < sum(person["email"] != "" for person in people) < 2_800
    assert len({re.sub("[0-9]", "9", person["phone"]) for person in people}) >= 5


def test_the_people_are_the_same_with_passwords_and_those_are_what_the_help_says():
    people = rows(2_000, 5, 0.3)
    forms = {}
    for person in people:
        if text := person.pop("password_hash"):
            forms.setdefault(tuple(text.split("$")[:2]), []).append((person["code"], text))
    assert people == rows(2_000, 5)
    assert 500 < sum(map(len, forms.values())) < 700
    assert len(forms) == 6
    for some in forms.values():
        assert all(read(text)[0] for _, text in some)
        code, text = some[-1]
        assert check_password(password_of(code), read(text)[0])
        assert not check_password(password_of(f"{(int(code) + 1) % 100:02}"), read(text)[0])


@pytest.mark.parametrize("count", [-1, CODES + 1])
def test_there_are_no_more_codes(count):
    with pytest.raises(ValueError, match="accounts"):
        next(accounts(count))
