"""A person who forgot the password, with a browser and the virtual phone: the one-time code, then the new password."""

import re

import pytest

from tests.browser.conftest import SIZES

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(300)]

WORDS = {
    "vi": {
        "forgot": "Lấy lại mật khẩu",
        "code": "Mã số BHXH",
        "next": "Tiếp tục",
        "sms": "Bằng tin nhắn đến số điện thoại đã đăng ký",
        "text": "Bằng cách nhắn tin đến 8079",
        "otp": "Mã xác thực (OTP)",
        "wrong": "Số lần thử còn lại: 2.",
        "again": "Gửi lại",
        "wait": "Hãy chờ một phút",
        "look": "Hãy xem điện thoại của bạn",
        "sign in": "Đăng nhập",
        "password": "Mật khẩu",
    },
    "en": {
        "forgot": "Get a new password",
        "code": "Social insurance code",
        "next": "Continue",
        "sms": "By SMS to the registered phone",
        "text": "By texting 8079",
        "otp": "One-time code",
        "wrong": "Tries left: 2.",
        "again": "Send it again",
        "wait": "Wait a minute",
        "look": "Check your phone",
        "sign in": "Sign in",
        "password": "Password",
    },
}


def read_phone(context, demo, number, pattern):
    """What the first text that fits says, on the virtual phone."""
    phone = context.new_page()
    for _ in range(60):
        phone.goto(f"{demo['phone']}?phone=84{number}")
        if found := re.findall(pattern, phone.inner_text("#thread")):
            phone.close()
            return found[-1]
        phone.wait_for_timeout(200)
    raise AssertionError(f"no text fits {pattern}")


@pytest.mark.parametrize(
    ("size", "language", "script", "citizen"),
    [("narrow", "vi", True, 0), ("desktop", "en", True, 1), ("narrow", "vi", False, 2)],
    ids=["phone-vi", "desktop-en", "phone-vi-without-javascript"],
)
def test_who_forgot_the_password_gets_a_new_one(demo, chromium, look, size, language, script, citizen):
    number, code = demo["citizens"][citizen]
    words = WORDS[language]
    sizes = {**SIZES, "narrow": {"width": 320, "height": 640}}
    context = chromium.new_context(viewport=sizes[size], java_script_enabled=script, locale="en-US")
    context.script = script
    page, errors, addresses = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.on("response", lambda response: errors.append(response.url) if response.status >= 400 else None)

    page.goto(f"{demo['pages']}login/?lang={language}")
    page.get_by_role("link", name=words["forgot"]).click()
    look(page, "code")
    page.get_by_label(words["code"]).fill(f"{code[:4]} {code[4:]}")
    page.get_by_role("button", name=words["next"]).click()

    # The ways: the message that is written for the phone, on a desktop also as a picture, and the free one.
    link = page.get_by_role("link", name=words["text"])
    assert link.get_attribute("href") == f"sms:8079?body=BH%20MK%20{code}"
    assert page.locator("svg.qr").is_visible() == (size == "desktop")
    look(page, "ways")
    page.get_by_role("button", name=words["sms"]).click()
    page.wait_for_url("**/recover/otp/**")
    look(page, "otp")

    # A wrong one, an impatient tap, then the right one as it is read aloud.
    otp = read_phone(context, demo, number, r"OTP\) cua ban la (\d{6})\. Khong cung cap cho bat ky ai\.")
    page.get_by_label(words["otp"]).fill(f"{(int(otp) + 1) % 10**6:06}")
    page.get_by_role("button", name=words["next"]).click()
    page.wait_for_selector(".errors")
    assert words["wrong"] in page.inner_text(".errors") and words["wrong"] in page.inner_text(".field .error")
    look(page, "wrong")
    page.get_by_role("button", name=words["again"]).click()
    page.wait_for_selector(f"text={words['wait']}")
    page.get_by_label(words["otp"]).fill(f"{otp[:3]} {otp[3:]}")
    page.get_by_role("button", name=words["next"]).click()
    page.wait_for_url("**/recover/done/**")
    assert words["look"] in page.inner_text("h1")
    look(page, "done")

    # The new password comes to the phone, and leads to the page that chooses one.
    issued = read_phone(context, demo, number, r"Mat khau moi: (\d{6})")
    page.locator("main").get_by_role("link", name=words["sign in"]).click()
    page.get_by_label(words["code"]).fill(code)
    page.get_by_label(words["password"], exact=True).fill(issued)
    page.get_by_role("button", name=words["sign in"], exact=True).click()
    page.wait_for_url("**/choose-password/")
    assert errors == []
    assert not [address for address in addresses if code in address or otp in address]
    assert {re.match(r"\w+://[^/]+/", address)[0] for address in addresses} == {demo["pages"]}
    context.close()
