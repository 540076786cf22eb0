"""What the tests of a forgotten password share: rules with a link to send by, and the phone that reads the texts."""

import dataclasses
from collections.abc import Callable
from datetime import timedelta

from django.conf import settings
from django.db import connection, transaction

from caplai.domain.otp import Budgets
from caplai.portal import recover
from caplai.service.deliver import compose, drop_dead
from caplai.service.forgotten_facts import Rules
from caplai.store import queues

LINK = "viettel"
BUDGETS = Budgets()


def rules_with(**changes) -> Rules:
    """The default rules with a link; `budgets` as a mapping of what differs."""
    rules = _plain()
    budgets = dataclasses.replace(rules.budgets, **changes.pop("budgets", {}))
    signin = dataclasses.replace(rules.signin, **changes.pop("signin", {}))
    reissue = dataclasses.replace(rules.reissue, **{"mt_link": LINK, **changes.pop("reissue", {})})
    return dataclasses.replace(rules, reissue=reissue, budgets=budgets, signin=signin, **changes)


_plain: Callable[[], Rules] = recover.rules


def read_phone() -> list[tuple[str, str]]:
    """The texts that phones were sent since the last look, as (digits, text), as the engine makes them."""
    with transaction.atomic():
        dues = queues.claim_outbox(connection.connection, LINK, "test", 100, timedelta(hours=1))
    ring = settings.KEYRING.ring("issuing")
    texts = [(due.destination, compose(due, ring)) for due in dues if drop_dead(due) is None]
    assert all(text for _, text in texts)
    return [(to, text or "") for to, text in texts]


def otp_of(text: str) -> str:
    return text.partition(" la ")[2][:6]


def another(otp: str) -> str:
    return f"{(int(otp) + 1) % 10**6:06}"
