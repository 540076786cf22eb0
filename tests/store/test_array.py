"""Columns as PostgreSQL's array literals: whatever a batch may hold comes back as it went."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caplai.store.db import array, connect

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
AWKWARD = st.sampled_from(
    ['"', "\\", '","', '\\"', "NULL", "null", "", " ", "{}", "{1,2}", ",", "a\nb", "é", "😀"]
)
TIMES = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.sampled_from(  # noqa: DTZ001
    [UTC, timezone(timedelta(hours=7)), timezone(timedelta(hours=-3, minutes=-30))]
))  # fmt: skip
COLUMNS = {
    "text": TEXT | AWKWARD,
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "bytea": st.binary(),
    "boolean": st.booleans(),
    "float8": st.floats(allow_nan=False),
    "uuid": st.uuids(),
    "timestamptz": TIMES,
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_comes_back_as_it_went(kind, db):
    with connect() as conn:

        @settings(max_examples=100, deadline=None)
        @given(st.lists(COLUMNS[kind] | st.none(), max_size=8))
        def comes_back(values):
            [(back,)] = conn.execute(f"select %s::{kind}[]", [array(values)]).fetchall()
            assert back == values

        comes_back()


def test_numbers_of_an_enum_are_numbers():
    from caplai.smpp.pdu import Status
    from caplai.store.queues import Suspect

    assert array([Suspect.ANY, Status.ESME_ROK, None]) == '{"2","0",NULL}'
    assert array([UUID(int=1)]) == "{00000000000000000000000000000001}"
