"""`caplai clients`: what the agency types."""

import re

import pytest
from allauth.idp.oidc.models import Client
from click.testing import CliRunner
from django.conf import settings
from django.db import connection
from psycopg.conninfo import make_conninfo

from caplai.cli import main


@pytest.fixture
def caplai(transactional_db, monkeypatch):
    """Run `caplai clients WORDS…` here, on the tests' database."""
    known = connection.get_connection_params()
    monkeypatch.setenv(
        "CAPLAI_DATABASE_URL",
        make_conninfo(
            "",
            **{name: known[name] for name in ("host", "port", "user", "password", "dbname") if name in known},
        ),
    )
    monkeypatch.setenv("CAPLAI_KEYRING", str(settings.CAPLAI.keyring_file))

    def run(*words):
        return CliRunner().invoke(main, ["clients", *words])

    return run


def test_a_client_comes_lives_and_goes(caplai):
    done = caplai("add", "Phòng khám", "--redirect-uri", "https://clinic.example.vn/back", "--scope", "email")
    assert done.exit_code == 0, done.output
    client_id, secret = (re.search(rf"client_{name} +(\S+)", done.output)[1] for name in ("id", "secret"))
    client = Client.objects.get()
    assert (client.id, client.type, client.skip_consent) == (client_id, "confidential", False)
    assert client.get_scopes() == ["openid", "email"] and client.check_secret(secret)
    listed = caplai("list").output
    assert client_id in listed and "https://clinic.example.vn/back" in listed and secret not in listed
    new = caplai("rotate-secret", client_id).output.split()[-1]
    client.refresh_from_db()
    assert client.check_secret(new) and not client.check_secret(secret)
    assert caplai("remove", client_id).exit_code == 0
    assert not Client.objects.exists()


def test_what_cannot_be_is_said_in_a_sentence(caplai):
    done = caplai("add", "Phòng khám", "--redirect-uri", "http://clinic.example.vn/back")
    assert done.exit_code == 2 and "must be https" in done.output
    done = caplai(
        "add", "Phòng khám", "--redirect-uri", "https://clinic.example.vn/back", "--scope", "profile"
    )
    assert done.exit_code == 2 and "no scope profile" in done.output
    assert caplai("remove", "nobody").exit_code == 1
    assert not Client.objects.exists()


def test_a_client_is_changed_and_stays_who_it_is(caplai):
    done = caplai(
        *("add", "Phòng khám", "--redirect-uri", "https://clinic.example.vn/back"),
        *("--scope", "email", "--scope", "phone", "--sector", "health"),
    )
    before = Client.objects.get()
    where = "https://moi.example.vn/back"
    done = caplai("change", before.id, "--redirect-uri", where, "--scope", "phone", "--sector", "health")
    assert done.exit_code == 0 and "Phòng khám" in done.output and where in done.output
    assert caplai("change", before.id, "--name", "Phòng khám Mới").exit_code == 0
    after = Client.objects.get()
    assert (after.name, after.get_redirect_uris()) == ("Phòng khám Mới", [where])
    assert after.get_scopes() == ["openid", "phone"]
    assert (after.id, after.secret, after.data, after.type) == (
        before.id,
        before.secret,
        before.data,
        before.type,
    )
    done = caplai("change", before.id, "--scope", "openid", "--post-logout-uri", "https://moi.example.vn/")
    assert "signed out: https://moi.example.vn/" in done.output
    assert Client.objects.get().get_scopes() == ["openid"]
    assert caplai("change", before.id, "--name", "Mới").exit_code == 0
    assert Client.objects.get().get_post_logout_redirect_uris() == ["https://moi.example.vn/"]
    assert caplai("change", before.id, "--post-logout-uri", "").exit_code == 0
    assert Client.objects.get().get_post_logout_redirect_uris() == []


WRONG_CHANGES = [
    ((), "Say what to change"),
    (("--redirect-uri", "http://clinic.example.vn/back"), "must be https"),
    (("--redirect-uri", "vn.example.app:/back"), "nobody would be asked"),
    (("--post-logout-uri", "javascript:alert(1)"), "turned round"),
    (("--scope", "profile"), "no scope profile"),
    (("--name", " "), "1 to 60 characters"),
    (("--sector", "health"), "know nobody again"),
]


def test_a_change_is_checked_as_a_new_client_is(caplai):
    uri = ("--redirect-uri", "https://app.agency.example.vn/back")
    assert caplai("add", "VssID", "--public", "--trusted", *uri).exit_code == 0
    before = Client.objects.values().get()
    for words, said in WRONG_CHANGES:
        done = caplai("change", before["id"], *words)
        assert done.exit_code == 2 and said in done.output, done.output
    assert "no client nobody" in caplai("change", "nobody", "--name", "x").output
    assert Client.objects.values().get() == before
