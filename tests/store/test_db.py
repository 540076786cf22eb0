"""Statements that go out together on Django's connection."""

import pytest
from django.db import DataError, connection, transaction

from caplai.store import db
from caplai.store.models import Switch

PUT = "insert into switch (name, value) values (%s, '1') returning name"


def stored() -> set[str]:
    return set(Switch.objects.values_list("name", flat=True))


def test_what_goes_out_together_is_stored_together(transactional_db):
    with db.together() as cursor:
        db.execute(PUT, ["one"])
        cursor.execute(PUT, ["two"])
    assert db.row(cursor) == ("two",)  # afterwards, too
    assert stored() == {"one", "two"}


def puts_and_divides(name: str, by: int) -> None:
    with db.together() as cursor:
        cursor.execute(PUT, [name])
        cursor.execute("select 1 / %s", [by])


def puts_and_fails(name: str) -> None:
    with db.together() as cursor:
        db.row(cursor.execute(PUT, [name]))
        raise ZeroDivisionError


def test_nothing_of_it_is_stored_when_it_fails(transactional_db):
    with pytest.raises(DataError):  # Django's, as of any other statement
        puts_and_divides("one", 0)
    with pytest.raises(ZeroDivisionError):
        puts_and_fails("two")
    assert stored() == set()
    puts_and_divides("three", 1)  # the connection is as good as before
    assert stored() == {"three"}


def test_in_a_transaction_of_django_s_it_is_a_part_of_that(transactional_db):
    with transaction.atomic():
        puts_and_divides("one", 1)
        transaction.set_rollback(True)
    assert stored() == set()


def test_the_server_prepares_it_once(transactional_db):
    for name in ("one", "two", "three", "four"):
        db.execute(PUT, [name])
    with connection.cursor() as cursor:
        cursor.execute(
            "select count(*) from pg_prepared_statements where statement like 'insert into switch%'"
        )
        assert cursor.fetchone() == (1,)
