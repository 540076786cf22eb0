"""Somebody signs in to the example client with Chromium: its page, our sign-in, consent, and back with checked tokens.

SCREENSHOTS=FOLDER keeps a picture of each page of ours.
"""

import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from allauth.idp.oidc.models import Token
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.test import Client as Browser

import caplai
from caplai.portal.oidc import clients
from caplai.store.models import Sitting
from tests.portal.oidc.conftest import signing_key
from tests.ports import free_port
from tests.signin.conftest import CHOSEN, citizen, login, open_case, sign_in

__all__ = ["citizen", "login", "open_case", "signing_key"]
EXAMPLE = Path(caplai.__file__).parents[1] / "examples" / "oidc-client" / "client.py"
SIZES = {"phone": {"width": 320, "height": 640}, "desktop": {"width": 1280, "height": 800}}
pytestmark = [pytest.mark.slow, pytest.mark.peer]


@pytest.fixture
def example(transactional_db, live_server, monkeypatch):
    """Start the example; `example(public=…, trusted=…)` is its address."""
    # Static files as the site serves them.
    monkeypatch.setattr(StaticFilesHandler, "_should_handle", lambda self, path: False)
    running = []

    def start(**registration) -> str:
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        registration = {"post_logout_uris": [f"{base}/"]} | registration
        client, secret = clients.add("Phòng khám Hòa Bình", [f"{base}/back"], ["phone"], **registration)
        words = [
            "--issuer",
            live_server.url,
            "--client-id",
            client.id,
            "--scope",
            "openid phone",
            "--port",
            str(port),
        ]
        words += ["--client-secret", secret] if secret else []
        process = subprocess.Popen([sys.executable, EXAMPLE, *words], stdout=subprocess.PIPE)
        running.append(process)
        assert select.select([process.stdout], [], [], 20)[0], "the example does not start"
        assert process.stdout.readline().decode() == f"Open {base}\n"
        end = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < end:
            time.sleep(0.05)
        assert time.monotonic() < end, "the example does not listen"
        return base

    yield start
    for process in running:
        process.terminate()
        process.wait(10)


def look(page, name):
    for size, viewport in SIZES.items():
        page.set_viewport_size(viewport)
        width = page.evaluate("document.documentElement.scrollWidth") if page.context.script else 0
        assert width <= viewport["width"], f"{name} scrolls sideways"
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            for language in ("vi", "en"):
                page.context.add_cookies([{"name": "lang", "value": language, "url": page.url}])
                page.reload()
                page.screenshot(path=Path(folder) / f"oidc-{name}-{size}-{language}.png", full_page=True)
    page.context.add_cookies([{"name": "lang", "value": "vi", "url": page.url}])


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_from_the_text_message_to_the_clinic(chromium, example, citizen, login, open_case, script):
    site, opened = example(), open_case()
    context = chromium.new_context(java_script_enabled=script, viewport=SIZES["phone"])
    context.script = script
    page = context.new_page()
    blocked = []
    page.on("console", lambda said: blocked.append(said.text) if "Content Security" in said.text else None)
    page.goto(site)
    page.get_by_role("link", name="Sign in").click()
    page.fill("[name=username]", citizen.code)
    page.fill("[name=password]", opened.password)
    page.locator("main form button").first.click()
    page.fill("[name=new_password]", "bà ngoại nấu phở")
    page.get_by_role("button", name="Lưu và tiếp tục").click()
    assert "Phòng khám Hòa Bình" in page.inner_text("h1")
    assert "số điện thoại" in page.inner_text("main")
    if script:
        look(page, "consent")
    page.locator("button[value=grant]").click()
    page.wait_for_selector("#sub")
    assert page.url.rstrip("/") == site
    assert len(page.inner_text("#sub")) == 64 and page.inner_text("#phone_number") == "+84327000686"
    assert citizen.code not in page.content()
    page.get_by_role("link", name="Renew").click()
    assert page.inner_text("#renewed") == "Renewed."
    assert not blocked
    # She loses the password again: whatever the clinic has is worth nothing from the moment that she is back.
    other = Browser()
    sign_in(other, citizen.code, open_case().password)
    assert other.post("/choose-password/", {"new_password": CHOSEN})["Location"] == "/"
    page.goto(f"{site}/renew")
    assert page.inner_text("#error") == "invalid_grant"


def test_the_agencys_own_app_asks_nobody_and_who_is_in_is_in(chromium, example, citizen, login):
    site = example(trusted=True)
    page = chromium.new_context().new_page()
    page.goto(f"{site}/sign-in")
    page.fill("[name=username]", citizen.code)
    page.fill("[name=password]", "wrong")
    page.locator("main form button").first.click()
    page.fill("[name=password]", CHOSEN)
    page.locator("main form button").first.click()
    page.wait_for_selector("#sub")
    sub = page.inner_text("#sub")
    page.get_by_role("link", name="Sign out").click()
    page.get_by_role("button", name="Không đăng xuất").click()
    page.get_by_role("link", name="Sign in").click()
    page.wait_for_selector("#sub")
    assert page.inner_text("#sub") == sub


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_who_signs_out_there_is_asked_here_and_is_out_of_both(chromium, example, citizen, login, script):
    site = example(trusted=True)
    page = chromium.new_context(java_script_enabled=script).new_page()
    blocked = []
    page.on("console", lambda said: blocked.append(said.text) if "Content Security" in said.text else None)
    page.goto(f"{site}/sign-in")
    page.fill("[name=username]", citizen.code)
    page.fill("[name=password]", CHOSEN)
    page.locator("main form button").first.click()
    page.wait_for_selector("#sub")
    page.get_by_role("link", name="Sign out").click()
    assert "Phòng khám Hòa Bình" in page.inner_text("main")
    page.get_by_role("button", name="Đăng xuất", exact=True).click()
    page.get_by_role("link", name="Sign in").wait_for()
    assert page.url == f"{site}/" and not blocked
    assert not Sitting.objects.exists() and not Token.objects.exists()
    page.get_by_role("link", name="Sign in").click()
    assert page.locator("[name=password]").count() == 1


def test_who_says_no_is_back_where_they_came_from(chromium, example, citizen, login):
    site = example()
    page = chromium.new_context().new_page()
    page.goto(f"{site}/sign-in")
    page.fill("[name=username]", citizen.code)
    page.fill("[name=password]", CHOSEN)
    page.locator("main form button").first.click()
    page.locator("button[value=cancel]").click()
    page.wait_for_selector("#error")
    assert page.inner_text("#error") == "access_denied"


def test_the_policy_holds_forms_back_elsewhere(chromium, example, citizen, login, monkeypatch):
    """Without the one source that the policy gains Chromium stays where it is: the tests above can fail."""
    monkeypatch.setattr("caplai.portal.oidc.middleware._destination", lambda *_: None)
    site = example(trusted=True)
    page = chromium.new_context().new_page()
    page.goto(f"{site}/sign-in")
    page.fill("[name=username]", citizen.code)
    page.fill("[name=password]", CHOSEN)
    with page.expect_console_message(lambda said: "form-action" in said.text):
        page.locator("main form button").first.click()
    assert not page.url.startswith(site)
