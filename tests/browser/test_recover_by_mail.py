"""A person on a small phone opens the link of the mail that came for a forgotten password, and chooses a new one."""

import pytest

from tests.browser.test_addresses import SIZES, box, look, pytestmark
from tests.mailbox import code_in, link_in
from tests.signin.conftest import citizen

__all__ = ["box", "citizen", "pytestmark"]


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_the_link_of_a_mail_leads_to_choosing_a_password(live_server, chromium, box, citizen, script):
    context = chromium.new_context(viewport=SIZES["phone"], java_script_enabled=script)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    shot = look if script else lambda page, name: None
    page.goto(live_server.url + "/recover/")
    page.get_by_label("Mã số BHXH").fill(citizen.code)
    page.get_by_role("button", name="Tiếp tục").click()
    shot(page, "recover-ways")
    page.get_by_role("button", name="Bằng email").click()
    page.wait_for_url("**/recover/otp/**")
    shot(page, "recover-mailed")
    box.deliver()
    [mail] = box.to(citizen.email)
    token = link_in(mail).partition("#")[2]

    # The mail is opened in another browser; there the link alone is enough, where a script may read it.
    other = chromium.new_context(viewport=SIZES["phone"], java_script_enabled=script).new_page()
    other.on("request", lambda request: asked.append(request.url))
    other.goto(f"{live_server.url}/recover/link/#{token}")
    if script:
        other.locator("input[name=token]").wait_for(state="hidden")
        assert other.evaluate("location.hash") == ""
        assert not other.locator("input[name=token]").is_visible()
        shot(other, "recover-link")
        other.get_by_role("button", name="Tiếp tục").click()
        chooser = other
    else:  # the field is shown; but the digits are shorter
        assert other.locator("input[name=token]").is_visible()
        page.get_by_label("Mã xác thực").fill(code_in(mail))
        page.get_by_role("button", name="Tiếp tục").click()
        chooser = page
    chooser.wait_for_url("**/choose-password/")
    assert not [url for url in asked if citizen.code in url or token in url or code_in(mail) in url]
