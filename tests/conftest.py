"""What several rooms' tests share: accounts, rules, and connections of their own."""

from collections.abc import Iterator

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.test import TransactionTestCase

from caplai.service.requests import Rules
from caplai.store.db import connect
from caplai.store.models import Account
from caplai.wiring import reissue_rules

_EMPTY = """
do $$ declare name regclass; filled boolean; begin
  for name in select oid from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace
    and relname not in ('django_migrations', 'django_content_type', 'auth_permission')
  loop
    execute format('select exists (select from %s)', name) into filled;
    if filled and pg_table_size(name) > 1000000 then execute format('truncate %s cascade', name);
    elsif filled then execute format('delete from %s', name);
    end if;
  end loop;
end $$"""


def _empty_the_tables(self: TransactionTestCase) -> None:
    """Django's own way truncates every table, 26 of them and their indexes, for the few rows that a test wrote."""
    with connection.cursor() as cursor:
        cursor.execute(_EMPTY)


TransactionTestCase._fixture_teardown = _empty_the_tables


@pytest.fixture
def conn(transactional_db) -> Iterator[psycopg.Connection]:
    """A connection of the engine's kind, on the test database."""
    with connect() as connection:
        yield connection


@pytest.fixture
def rules(conn) -> Rules:
    """The default configuration's rules, with a keyring of their own."""
    return reissue_rules(settings.CAPLAI, settings.KEYRING, conn)


@pytest.fixture
def lan(transactional_db) -> Account:
    """A citizen whose account is approved: code 0123456789, phone 0327 000 686."""
    return Account.objects.create(code="0123456789", phone="+84327000686", state="approved")
