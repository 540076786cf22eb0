"""Each target for a short while, and what fuzzing has found so far. `python -m bench fuzz NAME` goes on."""

import contextlib
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caplai.config import ConfigError, load
from caplai.service.accounts_file import WrongFile, read_lines
from caplai.service.register import import_accounts
from caplai.store.models import Account
from tests.fuzz.targets import TARGETS


@st.composite
def mutated(draw, examples):
    """An example with a few bytes changed, taken out, repeated or put in: a fuzzer's moves."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(examples), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
            case 1:
                del data[at : at + draw(st.integers(1, 30))]
            case 2:
                data[at:at] = data[max(0, at - draw(st.integers(1, 60))) : at]
            case 3:
                data[at:at] = draw(st.binary(max_size=20))
            case 4:
                data[at : at + 4] = draw(
                    st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x10", b'"', b"\r"])
                )
    return bytes(data)


def fuzz(name, examples):
    target, seeds = TARGETS[name]
    for seed in seeds:
        target(seed)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated(seeds))
    def run(data):
        target(data)

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_strangers_write_breaks_it(name):
    fuzz(name, 60)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_many_strangers_write_breaks_it(name):
    fuzz(name, 5000)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ('[service]\nkeyword = "B1"', "service: 'B1' is no keyword"),
        ('[service]\nshort_codes = ["80a"]', "service: '80a' is no short code"),
        ('[service]\nother_keywords = ["BH"]', "service: 'BH' is both our keyword"),
        ('[password]\nalphabet = "01234 6789"', "password.alphabet: must hold ASCII letters"),
        ("[signin]\nguess_window = -5", "signin.guess_window: "),
        ("[signin]\nsession_age = 0", "signin.session_age: "),
        ("x = " + "[" * 3000, "nests its lists too deeply"),
    ],
)
def test_a_setting_that_would_fail_later_is_refused_at_once(tmp_path, written, says):
    file = tmp_path / "caplai.toml"
    file.write_text(written)
    with pytest.raises(ConfigError) as refused:
        load(file)
    assert says in str(refused.value)


@settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=mutated(TARGETS["csv"][1]))
def check_import(conn, data):
    refused = []
    with contextlib.suppress(WrongFile):
        result = import_accounts(
            conn, read_lines(io.BytesIO(data)), update_phones=True, report=refused.append
        )
        assert result.refused == len(refused)
        assert conn.execute("select to_regclass('pg_temp.staged')").fetchone() == (None,)


def test_any_file_can_be_imported_into_postgresql(conn):
    """What is taken for good is good for PostgreSQL too: no NUL, no half character, no check fails."""
    check_import(conn)
    assert Account.objects.exists()


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"username": ' + b"1" * 5000 + b"}", b"{", b"\xff", b"[]"]
)
def test_json_that_the_parser_gives_up_on_is_refused(client, db, body):
    answer = client.post("/_allauth/app/v1/auth/login", body, content_type="application/json")
    assert answer.status_code == 400
