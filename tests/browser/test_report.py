"""Somebody opens the link of a notice on a small phone and says "this was not me".

SCREENSHOTS=FOLDER keeps a picture of each page, in both languages and on a wide screen, too.
"""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import transaction
from django.utils import timezone

from caplai.service import notices
from caplai.store.models import Account, Hold
from tests.browser.test_addresses import SIZES, box, look
from tests.mailbox import link_in
from tests.signin.conftest import citizen, login, open_case

__all__ = ["box", "citizen", "login", "open_case"]
pytestmark = [pytest.mark.slow, pytest.mark.peer]


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_this_was_not_me_on_a_small_phone(site, chromium, box, login, script):
    Account.objects.update(created_at=timezone.now() - timedelta(days=30))
    with transaction.atomic():
        notices.tell(login.username, "password_chosen")
    box.deliver()
    [mail] = box.to("lan@example.vn")
    path = link_in(mail).removeprefix("https://caplai.example.vn")
    context = chromium.new_context(viewport=SIZES["phone"], java_script_enabled=script)
    page = context.new_page()
    shot = look if script else lambda page, name: None
    if script and (folder := os.environ.get("SCREENSHOTS")):
        page.set_content(mail.get_body(("html",)).get_content())
        page.screenshot(path=Path(folder) / "mail-notice.png", full_page=True)
    page.goto(f"{site}{path}?lang=en")
    shot(page, "report-en")
    page.goto(f"{site}{path}?lang=vi")
    shot(page, "report")
    assert not Hold.objects.exists()
    page.get_by_role("button", name="Không phải tôi: khóa tài khoản").click()
    page.get_by_role("heading", name="Tài khoản đã khóa").wait_for()
    shot(page, "reported")
    page.goto(site + "/report/nothing/")
    shot(page, "report-over")
    assert Hold.objects.get().by == "mail"
