"""The commonest passwords, ours and those of everywhere, and what is made of an account's own numbers."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caplai.signin import known
from caplai.signin.known import fold, is_common, is_made_of, is_made_of_number

COMMON = """
anhyeuem anhyeuem1 anhyeuem123 emyeuanh yeuemnhieu maiyeuem khongbiet khongcogi vietnam1 vietnam123 nguyenvan 12345678
87654321 25251325 123456abc 123456a@ Aa123456 Aa@123456 Abc@1234 abcd1234 11223344 01234567 qwerty123 1qaz2wsx
iloveyou 88888888 68686868 147258369 12341234 p@ssw0rd Password@123 a1234567 aaaaaaaa AnhYeuEm@2024 30041975
Tuananh1990 nammoadidaphat
""".split()
COMMON += [
    "1 2 3 4 5 6 7 8",
    " 12345678",
    "Anh yêu em",
    "anh  yêu em nhiều 99",
    "Việt Nam 2025",
    "Nguyễn Văn A 123",
]


@pytest.mark.parametrize("password", COMMON)
def test_common(password):
    assert is_common(password)


@pytest.mark.parametrize(
    "password",
    ["bà ngoại nấu phở", "con mèo trèo cây cau", "12345 78", "anh yêu em như biển yêu sóng", "anhyeuem0912345678",
     "7hoa hồng vàng", "việt nam mưa nhiều lắm", "!!!!!!!!", "密码密码密码密码", "x" * 128],
)  # fmt: skip
def test_not_common(password):
    assert not is_common(password)


LONGEST = max(map(len, known._here() | known._everywhere()))
WORDS = (
    "bà ngoại nấu phở con mèo trèo cây cau vịt bơi qua sông rộng trâu già gặm cỏ bảy cò trắng mưa rơi".split()
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(WORDS), min_size=4, max_size=12, unique=True),
    st.sampled_from(["", " ", "-", "  "]),
    st.booleans(),
)
def test_a_phrase_of_one_s_own_always_passes(words, between, upper):
    phrase = between.join(words)
    phrase = phrase.upper() if upper else phrase
    assert not is_common(phrase)
    assert not is_made_of(phrase, ["vssid", "bhxh", "mat khau"])
    assert not is_made_of_number(phrase, "0012345678")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(min_size=1, max_size=128))
def test_what_is_longer_than_what_is_known_passes(text):
    assert not is_common(text) or len(fold(text)) <= LONGEST + 6 or len(text.strip()) <= LONGEST


NUMBER = "0012345678"


@pytest.mark.parametrize(
    "password",
    ["0012345678", "0012345678a", "a0012345678", "00123456", "00123456!!", "0012.3456.78 ab", "12345678", "2345679999",
     "DN4010012345678"],
)  # fmt: skip
def test_made_of_a_number(password):
    assert is_made_of_number(password, NUMBER)


@pytest.mark.parametrize(
    "password", ["12345 78", "0012345 con mèo", "00123999888", "87654321", "abc0012345678", ""]
)
def test_not_made_of_it(password):
    assert not is_made_of_number(password, NUMBER)


def test_the_list_is_folded_and_says_each_once():
    text = Path(known.__file__).with_name("known_passwords.txt").read_text("utf-8")
    words = [word for line in text.splitlines() if not line.startswith("#") for word in line.split()]
    assert len(words) == len(set(words)) > 500
    assert all(re.fullmatch(r"[a-z0-9]+", word) and fold(word) == word for word in words)
