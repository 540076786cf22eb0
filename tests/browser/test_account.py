"""My account with two browsers: sign in on both, see what happened, sign one out from the other, and so on."""

import re

import pytest

from tests.browser.conftest import SIZES

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(300)]

CHOSEN, CHANGED = "bà ngoại nấu phở", "con mèo trèo cây cau"
ANDROID = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/120.0.0.0 Mobile Safari/537.36"
WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/120.0.0.0 Safari/537.36"
WORDS = {
    "vi": {
        "code": "Mã số BHXH", "password": "Mật khẩu", "sign in": "Đăng nhập", "save": "Lưu và tiếp tục",
        "now": "Mật khẩu đang dùng", "new": "Mật khẩu mới", "change": "Lưu mật khẩu mới",
        "wrong": "Đây không phải mật khẩu bạn đang dùng.", "stored": "Đã lưu mật khẩu mới.",
        "windows": "Chrome trên Windows", "android": "Chrome trên Android", "out": "Đăng xuất Chrome trên Android",
        "was out": "Đã đăng xuất và bỏ ghi nhớ thiết bị đó.", "reissued": "Mật khẩu vừa được cấp lại",
        "asked": "Cấp lại mật khẩu bằng tin nhắn", "again": "Đã gửi lại mật khẩu đó",
    },
    "en": {
        "code": "Social insurance code", "password": "Password", "sign in": "Sign in", "save": "Save and continue",
        "now": "Your current password", "new": "New password", "change": "Save the new password",
        "wrong": "This is not your current password.", "stored": "Your new password is saved.",
        "windows": "Chrome on Windows", "android": "Chrome on Android", "out": "Sign out Chrome on Android",
        "was out": "It is signed out and no longer remembered.", "reissued": "The password was re-issued",
        "asked": "A new password was asked for by SMS", "again": "The same password was sent again",
    },
}  # fmt: skip


def issued(context, demo, number, code, texts):
    """Text 8079 so often; the password that comes back each time."""
    phone = context.new_page()
    for count in range(1, texts + 1):
        phone.goto(f"{demo['phone']}?phone=84{number}")
        phone.fill("#text", f"BH MK {code}")
        phone.click("#write button")
        for _ in range(60):
            if (
                len(found := re.findall(rf"Tai khoan: {code}/Mat khau: (\d+)", phone.inner_text("#thread")))
                >= count
            ):
                break
            phone.wait_for_timeout(200)
            phone.goto(f"{demo['phone']}?phone=84{number}")
    phone.close()
    assert len(set(found)) == 1
    return found[0]


@pytest.mark.parametrize(
    ("language", "script", "citizen"),
    [("vi", True, 0), ("vi", False, 1), ("en", True, 2)],
    ids=["vi", "vi-without-javascript", "en"],
)
def test_two_browsers(demo, chromium, look, language, script, citizen):
    number, code = demo["citizens"][citizen]
    words = WORDS[language]
    pages = demo["pages"]

    def person(size, user_agent):
        context = chromium.new_context(
            viewport=SIZES[size], java_script_enabled=script, user_agent=user_agent
        )
        context.script = script
        page = context.new_page()
        page.goto(f"{pages}login/?lang={language}")
        return page

    def sign_in(page, password):
        page.goto(f"{pages}login/")
        page.get_by_label(words["code"]).fill(code)
        page.get_by_label(words["password"], exact=True).fill(password)
        page.get_by_role("button", name=words["sign in"], exact=True).click()

    desktop, phone = person("desktop", WINDOWS), person("phone", ANDROID)
    sign_in(desktop, issued(desktop.context, demo, number, code, texts=2))
    desktop.wait_for_url("**/choose-password/")
    desktop.fill("input[name=new_password]", CHOSEN)
    desktop.get_by_role("button", name=words["save"]).click()
    desktop.wait_for_url(pages)
    assert words["reissued"] in desktop.inner_text("main")
    look(desktop, "account")
    sign_in(phone, CHOSEN)
    phone.wait_for_url(pages)
    look(phone, "account")

    # What happened, from both sides.
    phone.goto(f"{pages}account/history/")
    told = phone.inner_text("main")
    for one in (
        words["asked"],
        words["again"],
        words["windows"],
        words["android"],
        f"0{number[:3]}xxx{number[-3:]}",
    ):
        assert one in told
    assert number not in told and code not in told
    look(phone, "history")

    # One is signed out from the other, at once.
    desktop.goto(f"{pages}account/devices/")
    look(desktop, "devices")
    desktop.get_by_role("button", name=words["out"]).click()
    assert words["was out"] in desktop.inner_text("main")
    assert words["android"] not in desktop.locator(".cards").inner_text()
    phone.goto(f"{pages}account/devices/")
    assert "/login/" in phone.url
    sign_in(phone, CHOSEN)
    phone.wait_for_url(pages)

    # A password of one's own is changed: first with a slip, then right; the other one is out.
    phone.goto(f"{pages}account/password/")
    for current in ("not it", CHOSEN):
        phone.get_by_label(words["now"]).fill(current)
        phone.get_by_label(words["new"]).fill(CHANGED)
        phone.get_by_role("button", name=words["change"]).click()
        if current != CHOSEN:
            phone.wait_for_selector(".errors")
            assert words["wrong"] in phone.inner_text(".errors")
            look(phone, "wrong")
    phone.wait_for_url(pages)
    assert words["stored"] in phone.inner_text("main")
    desktop.goto(pages)
    assert "/login/" in desktop.url
    sign_in(desktop, CHOSEN)
    desktop.wait_for_selector(".errors")
    sign_in(desktop, CHANGED)
    desktop.wait_for_url(pages)
    for page in (desktop, phone):
        page.context.close()
