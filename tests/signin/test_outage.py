"""While the database is away people are told to try again; the log says it once, and that it is over once."""

import logging

import pytest
from django.db import connection
from django.test import Client

from caplai.signin import outage
from caplai.store.keyring import KeyringFile
from caplai.watch import metrics
from tests.signin.conftest import sign_in


@pytest.fixture
def away(transactional_db):
    """Puts the database out of reach, and back."""
    port = connection.settings_dict["PORT"], connection.settings_dict["HOST"]

    def put(is_away):
        connection.close()
        connection.settings_dict["PORT"], connection.settings_dict["HOST"] = (
            ("1", "127.0.0.1") if is_away else port
        )

    yield put
    put(False)


def said(caplog):
    """What was logged, but for the line of each request."""
    return [record for record in caplog.records if record.name != "caplai.http"]


def test_people_are_told_to_try_again_and_the_log_once(citizen, away, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "caplai")
    monkeypatch.setattr(outage, "QUIET", 0.0)
    browser = Client(raise_request_exception=False)
    away(True)
    for _ in range(3):
        page = sign_in(browser, citizen.code, "mot mat khau")
        assert page.status_code == 503
        assert page["Retry-After"] == "30"
        assert "lỗi là ở phía chúng tôi" in page.content.decode()
    body = {"username": citizen.code, "password": "mot mat khau"}
    told = browser.post("/_allauth/app/v1/auth/login", body, content_type="application/json")
    assert told.status_code == 503
    assert told.json()["errors"][0]["code"] == "try_again"
    assert browser.get("/login/").status_code == 200  # needs no database
    assert [record.message for record in said(caplog)] == [
        "web: database or keys cannot be used; people are told to try again"
    ]
    away(False)
    assert sign_in(browser, citizen.code, "mot mat khau").status_code == 200
    assert [record.message for record in said(caplog)[1:]] == ["web: pages are served again"]


@pytest.fixture
def refuses_writes(conn):
    """Makes the database refuse what counts a guess, and take it again; reading works all along."""
    name = conn.execute("select current_database()").fetchone()[0]

    def full_disk():
        conn.execute(
            "create function full_disk() returns trigger language plpgsql as"
            " $$ begin raise 'no space left' using errcode = '53100'; end $$;"
            "create trigger full_disk before insert on guess execute function full_disk()"
        )

    def read_only():
        conn.execute(f"alter database {name} set default_transaction_read_only = on")
        connection.close()

    yield {"full disk": full_disk, "read only": read_only}
    conn.execute("set default_transaction_read_only = off")
    conn.execute(f"alter database {name} reset default_transaction_read_only")
    conn.execute("drop function if exists full_disk cascade")
    connection.close()


@pytest.mark.parametrize(("trouble", "quiet"), [("full disk", 10.0), ("read only", 0.0)])
def test_pages_that_are_served_all_along_do_not_end_an_outage(
    citizen, refuses_writes, caplog, monkeypatch, trouble, quiet
):
    caplog.set_level(logging.INFO, "caplai.signin")
    monkeypatch.setattr(outage, "QUIET", quiet)
    monkeypatch.setattr(outage.Outage, "lasts", False)
    refuses_writes[trouble]()
    browser = Client(raise_request_exception=False)
    for _ in range(3):
        assert sign_in(browser, citizen.code, "mot mat khau").status_code == 503
        assert browser.get("/login/").status_code == 200
    assert [record.message for record in said(caplog)] == [
        "web: database or keys cannot be used; people are told to try again"
    ]


def test_a_bug_is_no_outage(browser, db, monkeypatch, caplog):
    monkeypatch.setattr("caplai.signin.views.SignIn.get_context_data", lambda *_, **__: 1 / 0)
    browser.raise_request_exception = False
    assert browser.get("/login/").status_code == 500
    assert [record.name for record in said(caplog)] == ["django.request"]


def test_who_is_told_to_try_again_for_want_of_keys_is_counted(citizen, settings, tmp_path):
    """The alert CaplaiSigninsNotPossible lives of it."""
    settings.KEYRING = KeyringFile(tmp_path / "not there")
    counted = metrics.signins.labels("try_again")._value.get
    before = counted()
    assert sign_in(Client(), citizen.code, "mot mat khau").status_code == 503
    assert counted() == before + 1
