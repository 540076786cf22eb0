"""Codes and tokens that stand in no table: one label's never prove another's, and nothing else is one."""

from uuid import UUID

import pytest

from caplai.domain import capability

KEY, OTHER = b"k" * 32, b"o" * 32
NAME = UUID(int=0x0123456789ABCDEF0123456789ABCDEF)


def test_what_they_are_does_not_change():
    assert capability.code(KEY, "address", NAME) == "373789"
    assert capability.token(KEY, "report", NAME) == "ASNFZ4mrze8BI0VniavN7ycLFC5d1V6t3y4SGy9fDDY"


def test_a_code_is_good_for_its_key_label_and_name():
    code = capability.code(KEY, "address", NAME)
    assert capability.code_matches([OTHER, KEY], "address", NAME, f" {code[:3]} {code[3:]} ")
    assert not capability.code_matches([OTHER], "address", NAME, code)
    assert not capability.code_matches([KEY], "report", NAME, code)
    assert not capability.code_matches([KEY], "address", UUID(int=1), code)
    assert not capability.code_matches([KEY], "address", NAME, "\ud800" + code[1:])


def test_a_token_is_good_for_its_key_and_label():
    token = capability.token(KEY, "report", NAME)
    assert len(token) == 43
    assert capability.name_of([OTHER, KEY], "report", token) == NAME
    assert capability.name_of([OTHER], "report", token) is None
    assert capability.name_of([KEY], "address", token) is None


@pytest.mark.parametrize("junk", ["", "x", "a" * 43, "é" * 43, "=" * 43, "a" * 42, "a" * 44, "a/" * 21 + "a"])
def test_nothing_else_is_a_token(junk):
    assert capability.name_of([KEY], "report", junk) is None
