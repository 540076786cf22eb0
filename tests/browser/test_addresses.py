"""Somebody adds an e-mail address on a small phone: the code comes to a mailbox, by a real mail server.

SCREENSHOTS=FOLDER keeps a picture of each page, in both languages and on a wide screen, too.
"""

import os
import re
from pathlib import Path

import pytest

from caplai.service.addresses import confirmed
from tests.mailbox import code_in, mailer, running, send
from tests.signin.conftest import CHOSEN, citizen, login, open_case

__all__ = ["citizen", "login", "open_case"]
pytestmark = [pytest.mark.slow, pytest.mark.peer]
SIZES = {"phone": {"width": 320, "height": 640}, "wide": {"width": 1280, "height": 800}}


@pytest.fixture
def box(transactional_db, settings):
    with running() as (box, server):
        settings.CAPLAI = settings.CAPLAI.model_copy(update={"mail": server})
        box.deliver = lambda: send(mailer(server))
        yield box


def look(page, name):
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], f"{name} scrolls sideways"
    if not (folder := os.environ.get("SCREENSHOTS")):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    here = page.viewport_size
    for size, viewport in SIZES.items():
        page.set_viewport_size(viewport)
        page.screenshot(path=Path(folder) / f"{name}-{size}.png", full_page=True)
    page.set_viewport_size(here)


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_an_address_is_added_on_a_small_phone(site, chromium, box, login, script):
    context = chromium.new_context(viewport=SIZES["phone"], java_script_enabled=script)
    page = context.new_page()
    page.goto(site + "/login/?next=/account/email/")
    page.get_by_label("Mã số BHXH").fill(login.username)
    page.get_by_label("Mật khẩu").first.fill(CHOSEN)
    page.locator("main form button").first.click()
    shot = look if script else lambda page, name: None
    shot(page, "addresses")
    page.get_by_role("link", name="Thêm địa chỉ email").click()
    page.get_by_label("Địa chỉ email").fill("lan")
    page.get_by_role("button", name="Gửi mã").click()
    shot(page, "address-wrong")
    page.get_by_label("Địa chỉ email").fill("lan@mailbox.example.com")
    page.get_by_role("button", name="Gửi mã").click()
    shot(page, "address-code")
    box.deliver()
    [mail] = box.to("lan@mailbox.example.com")
    if folder := os.environ.get("SCREENSHOTS"):
        view = context.new_page()
        view.set_content(mail.get_body(("html",)).get_content())
        view.screenshot(path=Path(folder) / "mail-code.png", full_page=True)
        view.close()
    page.get_by_label("Mã xác thực").fill(code_in(mail))
    page.get_by_role("button", name="Xác nhận địa chỉ").click()
    assert "Đã xác nhận địa chỉ email." in page.content()
    shot(page, "address-confirmed")
    page.goto(site + "/account/email/?lang=en")
    shot(page, "addresses-en")
    assert re.search(r"confirmed on \d", page.content())
    assert [address.email for address in confirmed(login.account_id)] == [
        "lan@example.vn",
        "lan@mailbox.example.com",
    ]
    box.deliver()
    assert len(box.to("lan@example.vn")) == 1
