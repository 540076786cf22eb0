"""`decide` as a table: with every fact good it issues; each fact turned bad refuses in its own way."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caplai.domain.policy import (
    ERRORS,
    GRANTED,
    RULES,
    SILENT,
    Decision,
    Facts,
    Limit,
    Limits,
    OpenCase,
    Outcome,
    decide,
)

NOW = datetime(2026, 11, 22, 14, 5, 30, tzinfo=UTC)
LIMITS = Limits()


def ago(**delta):
    return NOW - timedelta(**delta)


GOOD = Facts(
    understood=None,
    open=True,
    proved=True,
    case=None,
    account_cases=[ago(days=20), ago(hours=3), ago(hours=2)],
    phone_cases=[ago(days=20), ago(hours=3), ago(hours=2)],
    phone_accounts=1,
    phone_errors=[ago(minutes=50)] * 4,
)


def test_all_facts_good():
    assert decide(GOOD, LIMITS, NOW) == Decision(Outcome.ISSUED)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"understood": Outcome.OTHER_AGENCY}, Decision(Outcome.OTHER_AGENCY)),
        ({"understood": Outcome.BAD_CODE}, Decision(Outcome.BAD_CODE)),
        ({"understood": Outcome.BAD_SYNTAX}, Decision(Outcome.BAD_SYNTAX)),
        ({"open": False}, Decision(Outcome.CLOSED)),
        ({"proved": False}, Decision(Outcome.MISMATCH)),
        ({"case": OpenCase(NOW + timedelta(hours=1), 4)}, Decision(Outcome.JOINED)),
        (
            {"case": OpenCase(NOW + timedelta(hours=1), 5)},
            Decision(Outcome.OVER_LIMIT, NOW + timedelta(hours=1)),
        ),
        (
            {"account_cases": [ago(hours=23), ago(hours=3), ago(hours=2)]},
            Decision(Outcome.OVER_LIMIT, NOW + timedelta(hours=1)),
        ),
        (
            {"account_cases": [ago(days=29 - n) for n in range(10)]},
            Decision(Outcome.OVER_LIMIT, NOW + timedelta(days=1)),
        ),
        (
            {"phone_cases": [ago(hours=20)] * 5},
            Decision(Outcome.OVER_LIMIT, NOW + timedelta(hours=4)),
        ),
        (
            {"phone_cases": [ago(days=28)] * 20},
            Decision(Outcome.OVER_LIMIT, NOW + timedelta(days=2)),
        ),
        (
            {"phone_cases": [ago(hours=20)] * 10, "phone_accounts": 2},
            Decision(Outcome.OVER_LIMIT, NOW + timedelta(hours=4)),
        ),
    ],
)
def test_each_fact_turned_bad(bad, expected):
    assert decide(replace(GOOD, **bad), LIMITS, NOW) == expected


@pytest.mark.parametrize(
    "still_good",
    [
        {"case": OpenCase(NOW, 5)},  # its time is up this very moment
        {"account_cases": [ago(hours=24), ago(hours=3), ago(hours=2)]},  # just out of the window
        {"phone_cases": [ago(hours=20)] * 9, "phone_accounts": 2},
        {"phone_errors": [ago(minutes=1)] * 50},  # success is never met with silence
    ],
)
def test_what_does_not_refuse(still_good):
    assert decide(replace(GOOD, **still_good), LIMITS, NOW) == Decision(Outcome.ISSUED)


@pytest.mark.parametrize(
    "bad",
    [
        {"understood": Outcome.BAD_CODE},
        {"understood": Outcome.BAD_SYNTAX},
        {"proved": False},
        {"open": False},
        {"account_cases": [ago(hours=1)] * 3},
    ],
)
def test_the_sixth_error_within_an_hour_gets_silence(bad):
    facts = replace(GOOD, **bad, phone_errors=[ago(minutes=59)] * 5)
    assert decide(facts, LIMITS, NOW) == Decision(Outcome.SILENCED)
    facts.phone_errors = [ago(minutes=60), *[ago(minutes=59)] * 4]
    assert decide(facts, LIMITS, NOW).outcome in ERRORS


def test_the_rules_stand_in_the_order_of_the_specification():
    assert [rule.says.split()[0] for rule in RULES] == ["a", "a", "what", "code", "an", "a", "beyond", "a"]
    everything_bad = Facts(understood=Outcome.BAD_SYNTAX, open=False, account_cases=[NOW] * 9)
    assert decide(everything_bad, LIMITS, NOW).outcome is Outcome.CLOSED
    everything_bad.open = True
    assert decide(everything_bad, LIMITS, NOW).outcome is Outcome.BAD_SYNTAX
    everything_bad.understood = None
    everything_bad.held = True
    assert decide(everything_bad, LIMITS, NOW).outcome is Outcome.MISMATCH
    everything_bad.proved = True
    assert decide(everything_bad, LIMITS, NOW).outcome is Outcome.HELD


def test_every_outcome_is_granted_silent_or_an_error():
    assert frozenset(Outcome) == GRANTED | SILENT | ERRORS
    assert not GRANTED & SILENT
    assert not GRANTED & ERRORS


@given(
    st.lists(st.integers(0, 40 * 24 * 60), max_size=40),
    st.integers(1, 5),
    st.integers(1, 30 * 24 * 60),
    st.integers(1, 3),
)
def test_a_limit_is_free_again_at_the_time_it_says_and_not_a_moment_earlier(minutes, count, window, factor):
    limit = Limit(count, timedelta(minutes=window))
    times = sorted(NOW - timedelta(minutes=minute) for minute in minutes)
    until = limit.free_at(times, NOW, factor)
    if until is None:
        assert sum(time > NOW - limit.window for time in times) < count * factor
    else:
        assert until > NOW
        assert limit.free_at(times, until, factor) is None
        assert limit.free_at(times, until - timedelta(microseconds=1), factor) is not None


FREE = Limits(free_account=(Limit(2, timedelta(days=1)),), free_phone=(Limit(2, timedelta(days=1)),))


@pytest.mark.parametrize(
    ("facts", "until"),
    [
        ({"account_cases": [ago(hours=3), ago(hours=2)]}, None),
        ({"free_account_cases": [ago(hours=2)], "account_cases": [ago(hours=3), ago(hours=2)]}, None),
        ({"free_account_cases": [ago(hours=3), ago(hours=2)]}, ago(hours=3) + timedelta(days=1)),
        ({"free_phone_cases": [ago(hours=3), ago(hours=2)]}, ago(hours=3) + timedelta(days=1)),
        ({"free_phone_cases": [ago(hours=3), ago(hours=2)], "phone_accounts": 2}, None),
        (
            {"account_cases": [ago(hours=9), ago(hours=3), ago(hours=2)], "free_account_cases": []},
            ago(hours=9) + timedelta(days=1),
        ),
        (
            {
                "account_cases": [ago(hours=9), ago(hours=3), ago(hours=2)],
                "free_account_cases": [ago(hours=3), ago(hours=2)],
            },
            ago(hours=3) + timedelta(days=1),
        ),
    ],
)
def test_what_is_free_has_limits_beside_those_of_all(facts, until):
    facts = Facts(**{"proved": True, "account_cases": [ago(hours=2)], **facts})
    expected = Decision(Outcome.ISSUED) if until is None else Decision(Outcome.OVER_LIMIT, until)
    assert decide(facts, FREE, NOW) == expected
