"""The day after a re-issue (caplai/service/cooling.py)."""

from datetime import timedelta

import pytest
from django.utils import timezone

from caplai.service.cooling import COOLING, cooling_until
from caplai.store.models import Case

pytestmark = pytest.mark.django_db

CODE = "0012345678"


def _case(ended_ago: timedelta | None, ended_as: str | None, account: str = CODE) -> Case:
    now = timezone.now()
    return Case.objects.create(
        account=account,
        phone="+84327000686",
        channel="sms",
        key="k",
        version=1,
        length=6,
        alphabet="0123456789",
        opened_at=now - timedelta(days=3),
        expires_at=now + timedelta(hours=1),
        ended_at=None if ended_ago is None else now - ended_ago,
        ended_as=ended_as,
    )


def test_it_ends_24_hours_after_the_latest_case_was_used():
    _case(timedelta(hours=20), "used")
    latest = _case(timedelta(hours=2), "used")
    assert cooling_until(CODE) == latest.ended_at + COOLING


@pytest.mark.parametrize("end", [end for end in Case.End if end is not Case.End.USED])
def test_only_a_used_case_begins_it(end):
    _case(timedelta(hours=1), end)
    assert cooling_until(CODE) is None


def test_there_is_none_when_it_is_over_or_never_was_or_is_anothers():
    assert cooling_until(CODE) is None
    _case(timedelta(hours=24, seconds=1), "used")
    _case(timedelta(hours=1), "used", account="0099999999")
    _case(None, None)
    assert cooling_until(CODE) is None
