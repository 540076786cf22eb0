"""Web requests: their id, probes that need no name, metrics without a path."""

import asyncio
import json

import pytest
from django.test import Client

from caplai import health
from caplai.store.keyring import KeyringFile
from caplai.watch import metrics
from caplai.watch.listener import Listener
from tests.ports import free_port
from tests.watch.running import fetch


@pytest.fixture
def browser(db):
    yield Client()
    health.of_the_web().close()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Whether it is told within a second is for tests/watch/test_watched.py to say."""
    monkeypatch.setattr(health, "PATIENCE", 10.0)


@pytest.fixture
def proxied(browser, settings):
    """As behind a proxy on this host that we trust."""
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"trusted_proxies": ["127.0.0.1"]})
    return browser


def asked(client, id_, path="/login/"):
    return client.get(path, headers={"X-Request-Id": id_})["X-Request-Id"]


def test_a_trusted_proxy_s_id_is_kept_if_it_is_sane(proxied):
    assert asked(proxied, "req-7f3a:1") == "req-7f3a:1"
    for insane in ("", "a b", "é", "x" * 65, 'a"b', "0123456789", "a-84327000686"):
        made = asked(proxied, insane)
        assert made != insane and len(made) == 16


def test_a_stranger_s_id_is_not(browser):
    assert asked(browser, "mine") != "mine"


def test_each_request_has_an_id_of_its_own(browser):
    assert browser.get("/login/")["X-Request-Id"] != browser.get("/login/")["X-Request-Id"]


def test_what_is_logged_meanwhile_carries_the_id_and_no_path(browser, caplog):
    caplog.set_level("INFO", "caplai.http")
    browser.get("/login/?username=0123456789")
    browser.get("/0123456789/")
    # An earlier test's remains may be logged meanwhile, when they are collected.
    [record] = [record for record in caplog.records if record.name == "caplai.http"]
    assert record.fields["route"] == "/login/" and record.fields["status"] == 200
    assert "0123456789" not in metrics.render().decode()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_no_name_and_no_https(browser, settings, path):
    settings.ALLOWED_HOSTS = ["caplai.example"]
    settings.SECURE_SSL_REDIRECT = True
    answer = browser.get(path, headers={"host": "10.1.2.3"})
    assert answer.status_code == 200
    assert answer.json()["status"] in ("alive", "ready")
    assert answer["Cache-Control"] == "no-store"
    assert browser.get("/login/", headers={"host": "10.1.2.3"}).status_code in (301, 400)


def test_a_missing_migration_and_a_keyring_that_others_may_read_are_told(conn, browser, settings):
    conn.execute("update django_migrations set name = 'x' || name where app = 'store'")
    path = settings.KEYRING.path
    try:
        path.chmod(0o644)
        looking = health.Health(KeyringFile(path))
        found = looking.problems()
        looking.close()
    finally:
        path.chmod(0o600)
        conn.execute("update django_migrations set name = substr(name, 2) where app = 'store'")
    assert "migrations are missing" in found[0] and "caplai migrate" in found[0]
    assert "keyring" in found[1]
    assert str(path) not in json.dumps(found)
    assert looking.problems() == []
    looking.close()


def test_a_standby_is_not_ready(conn, settings):
    database = conn.execute("select current_database()").fetchone()[0]
    try:
        conn.execute(f"alter database {database} set default_transaction_read_only = on")
        looking = health.Health(settings.KEYRING)
        assert "takes no writes" in looking.problems()[0]
        looking.close()
    finally:
        conn.execute("set transaction_read_only = off")
        conn.execute(f"alter database {database} reset default_transaction_read_only")


def test_a_scrape_alone_tells_whether_the_process_is_ready(conn, settings):
    """Nobody else need ask: no load balancer probes an engine."""

    async def scraped():
        port, health_ = free_port(), health.Health(settings.KEYRING)
        listener = Listener("127.0.0.1", port, lambda: asyncio.to_thread(health_.problems))
        await listener.start()
        try:
            return (await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/metrics"))[1]
        finally:
            await listener.stop()
            health_.close()

    metrics.ready.set(0)
    assert "\ncaplai_ready 1.0\n" in asyncio.run(scraped())
