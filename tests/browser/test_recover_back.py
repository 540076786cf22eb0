"""Who forgot the password goes back, forward and loads again, at every step: there is always a page of ours."""

import pytest

from caplai.portal import recover
from caplai.store.models import Account, Recovery
from tests.browser.conftest import SIZES
from tests.portal.forgetting import another, otp_of, read_phone, rules_with

pytestmark = [pytest.mark.peer, pytest.mark.slow]
HEADINGS = {
    "code": "Quên mật khẩu?",
    "ways": "Bạn muốn lấy lại mật khẩu bằng cách nào?",
    "otp": "Nhập mã xác thực",
    "done": "Hãy xem điện thoại của bạn",
    "sign in": "Đăng nhập",
}


@pytest.fixture
def lan(transactional_db, monkeypatch):
    changed = rules_with()
    monkeypatch.setattr(recover, "rules", lambda: changed)
    return Account.objects.create(code="0123456789", phone="+84327000686", state="approved")


@pytest.fixture(params=[True, False], ids=["script", "no script"])
def page(request, chromium, site):
    context = chromium.new_context(viewport=SIZES["phone"], java_script_enabled=request.param)
    page = context.new_page()
    page.script = request.param
    page.goto(f"{site}/recover/")
    if request.param:
        page.evaluate("navigator.serviceWorker.ready")
        page.wait_for_function("navigator.serviceWorker.controller !== null")
    yield page
    context.close()


def is_at(page, step):
    """On this page, also when it is loaded again."""
    for _ in range(2):
        assert HEADINGS[step] in page.inner_text("h1"), page.url
        page.reload()
    assert HEADINGS[step] in page.inner_text("h1"), page.url


def there_and_back(page, before, here):
    """Back, forward."""
    page.go_back()
    is_at(page, before)
    page.go_forward()
    is_at(page, here)


def press(page, name):
    with page.expect_navigation():
        page.get_by_role("button", name=name).first.click()


def test_back_forward_and_reload_at_every_step(page, lan):
    page.get_by_label("Mã số BHXH").fill("12345")
    press(page, "Tiếp tục")
    assert page.input_value("[name=code]") == "12345"
    assert page.locator(".errors").is_visible()
    is_at(page, "code")
    page.get_by_label("Mã số BHXH").fill(lan.code)
    press(page, "Tiếp tục")
    is_at(page, "ways")
    there_and_back(page, "code", "ways")

    # Another language, and back to the first one, with the code.
    page.get_by_role("link", name="English").click()
    assert page.inner_text("h1 .code") == lan.code
    page.get_by_role("link", name="Tiếng Việt").click()
    is_at(page, "ways")

    press(page, "Bằng tin nhắn")
    is_at(page, "otp")
    there_and_back(page, "ways", "otp")
    otp = otp_of(read_phone()[0][1])
    for tries in (2, 1):
        page.get_by_label("Mã xác thực").fill(another(otp))
        press(page, "Tiếp tục")
        assert f"còn lại: {tries}" in page.inner_text(".errors")
        is_at(page, "otp")
    press(page, "Gửi lại")
    is_at(page, "otp")
    page.go_back()
    assert page.inner_text("h1").endswith((HEADINGS["otp"], HEADINGS["ways"]))
    page.go_forward()
    is_at(page, "otp")

    page.get_by_label("Mã xác thực").fill(otp)
    press(page, "Tiếp tục")
    is_at(page, "done")
    page.go_back()
    is_at(page, "done")
    page.go_forward()
    is_at(page, "done")
    page.locator("main").get_by_role("link", name="Đăng nhập").click()
    is_at(page, "sign in")
    assert page.input_value("[name=username]") == lan.code
    assert page.get_attribute("[name=username]", "autocomplete") == "username webauthn"
    there_and_back(page, "done", "sign in")
    assert Recovery.objects.get().ended_as == "proved"


@pytest.mark.parametrize("page", [True], ids=["script"], indirect=True)
def test_back_to_a_sign_in_that_was_refused(page, site, lan):
    """Without JavaScript browsers ask whether to send the form again."""
    page.goto(f"{site}/login/")
    page.get_by_label("Mã số BHXH").fill(lan.code)
    page.get_by_label("Mật khẩu", exact=True).fill("not this one")
    press(page, "Đăng nhập")
    assert page.locator(".errors").is_visible()
    page.get_by_role("link", name="Lấy lại mật khẩu", exact=True).click()
    is_at(page, "code")
    there_and_back(page, "sign in", "code")


def test_an_impatient_second_tap_changes_nothing(page, lan):
    """On a slow network the answer to the first is not there yet."""
    slow = page.context.new_cdp_session(page)
    slow.send("Network.enable")
    page.get_by_label("Mã số BHXH").fill(lan.code)
    press(page, "Tiếp tục")
    limits = {"offline": False, "latency": 1000, "downloadThroughput": 20_000, "uploadThroughput": 20_000}
    slow.send("Network.emulateNetworkConditions", limits)
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    _tap_twice(page, "Bằng tin nhắn")
    page.wait_for_url("**/recover/otp/**")
    [(_, text)] = read_phone()
    page.get_by_label("Mã xác thực").fill(otp_of(text))
    _tap_twice(page, "Tiếp tục")
    page.wait_for_url("**/recover/done/**")
    is_at(page, "done")
    assert len(sent) == (2 if page.script else 4)
    assert len(read_phone()) == Recovery.objects.count() == 1


def _tap_twice(page, name):
    box = page.get_by_role("button", name=name).first.bounding_box()
    for _ in range(2):
        page.mouse.click(box["x"] + 20, box["y"] + 10)
        page.wait_for_timeout(150)
