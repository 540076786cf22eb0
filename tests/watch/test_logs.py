"""What a log line says of an exception: class and place, and nothing of what was handled."""

import logging
import sys

import pytest

from caplai.watch.logs import Plain, describe

SECRET = "0123456789"


def caught(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def fails_on_a_code():
    raise ValueError(f"cannot do {SECRET}")


def fails_because_of_that():
    try:
        fails_on_a_code()
    except ValueError as error:
        raise KeyError(SECRET) from error


def test_an_exception_and_its_cause_are_told_by_class_and_place():
    said = describe(caught(fails_because_of_that))
    assert "builtins.KeyError" in said and "builtins.ValueError" in said
    assert "in fails_on_a_code" in said and "test_logs.py" in said
    assert SECRET not in said


def test_what_is_in_a_group_is_told_too():
    inner = ExceptionGroup(SECRET, [caught(fails_because_of_that)])
    said = describe(ExceptionGroup(SECRET, [TypeError(SECRET), inner]))
    for name in ("ExceptionGroup", "TypeError", "KeyError", "ValueError"):
        assert f"builtins.{name}" in said
    assert "in fails_on_a_code" in said
    assert SECRET not in said


def test_a_circle_of_causes_has_an_end():
    one, two = ValueError(SECRET), TypeError(SECRET)
    one.__cause__, two.__cause__ = two, one
    assert describe(one).splitlines() == ["builtins.ValueError", "builtins.TypeError"]


@pytest.mark.parametrize("error", [ValueError(SECRET), ExceptionGroup(SECRET, [ValueError(SECRET)])])
def test_the_formatter_writes_no_text_of_an_exception(error):
    try:
        raise error
    except Exception:
        record = logging.LogRecord("caplai", logging.ERROR, __file__, 1, "it failed", None, sys.exc_info())
    said = Plain().format(record)
    assert "ERROR caplai: it failed\n" in said
    assert "builtins.ValueError" in said
    assert SECRET not in said
