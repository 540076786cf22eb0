"""A person with a browser: text from the virtual phone, sign in with what comes back, choose a password.

`caplai demo` runs as its user would run it. SCREENSHOTS=FOLDER keeps a picture of each page.
"""

import os
import re
import shlex
import subprocess
import sys

import pytest

from caplai.demo import _text
from tests.browser.conftest import SIZES, launched, said_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def chromium():
    """Its own, which ends with it: these tests are long, so they do not come last."""
    with launched() as browser:
        yield browser


@pytest.mark.parametrize(
    ("size", "language", "script", "citizen"),
    [
        ("phone", "vi", True, 0),
        pytest.param("desktop", "en", True, 1, marks=pytest.mark.slow),
        pytest.param("phone", "vi", False, 2, marks=pytest.mark.slow),
    ],
    ids=["phone-vi", "desktop-en", "phone-vi-without-javascript"],
)
def test_a_citizen_gets_back_in(demo, chromium, look, size, language, script, citizen):
    number, code = demo["citizens"][citizen]
    vi = language == "vi"
    context = chromium.new_context(viewport=SIZES[size], java_script_enabled=script, locale="en-US")
    context.script = script
    errors = []
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda response: errors.append(response.url) if response.status >= 400 else None)

    # The virtual phone: find the citizen, text 8079, read the reply.
    page.goto(demo["phone"] + ("" if vi else "?lang=en"))
    look(page, "phones")
    page.goto(f"{demo['phone']}?phone=84{number}")
    page.fill("#text", f"bh mk {{{code}}}")
    page.click("#write button")
    if script:
        page.wait_for_selector("text=Cap lai mat khau thanh cong")
    else:
        for _ in range(50):  # the page refreshes itself; a person would tap "Xem tin moi"
            if page.locator(f"text=Tai khoan: {code}").count():
                break
            page.wait_for_timeout(200)
            page.goto(f"{demo['phone']}?phone=84{number}")
    thread = page.inner_text("#thread")
    assert re.search(r"[12][.,]000 đ", page.inner_text("#paid"))
    issued = re.search(rf"Tai khoan: {code}/Mat khau: (\d{{6}})", thread)[1]
    look(page, "phone")

    # The sign-in page: a wrong password first, as it happens, then the right one.
    page.goto(demo["pages"] + ("" if vi else "?lang=en"))
    assert page.url.startswith(f"{demo['pages']}login/")
    page.get_by_label("Mã số BHXH" if vi else "Social insurance code").fill(code)
    page.get_by_label("Mật khẩu" if vi else "Password", exact=True).fill("not it")
    page.get_by_role("button", name="Đăng nhập" if vi else "Sign in", exact=True).click()
    page.wait_for_function("start => document.title.startsWith(start)", arg="Lỗi" if vi else "Error")
    look(page, "wrong")
    page.get_by_label("Mã số BHXH" if vi else "Social insurance code").fill(code)
    page.get_by_label("Mật khẩu" if vi else "Password", exact=True).fill(issued)
    look(page, "sign-in")
    page.get_by_role("button", name="Đăng nhập" if vi else "Sign in", exact=True).click()

    # One page, one thing to do.
    page.wait_for_url("**/choose-password/")
    page.fill("input[name=new_password]", "mot mat khau rieng")
    look(page, "choose")
    page.locator("main form button").first.click()
    page.wait_for_url(demo["pages"])
    assert code in page.inner_text("main")
    look(page, "home")

    # Out, and in again with the password of one's own.
    page.get_by_role("button", name="Đăng xuất" if vi else "Sign out", exact=True).click()
    page.goto(f"{demo['pages']}login/")
    page.get_by_label("Mã số BHXH" if vi else "Social insurance code").fill(code)
    page.get_by_label("Mật khẩu" if vi else "Password", exact=True).fill("mot mat khau rieng")
    page.get_by_role("button", name="Đăng nhập" if vi else "Sign in", exact=True).click()
    page.wait_for_url(demo["pages"])
    assert code in page.inner_text("main")
    assert errors == []
    context.close()


@pytest.mark.parametrize(
    ("size", "language", "script", "citizen"),
    [("phone", "vi", True, 1), pytest.param("desktop", "en", False, 0, marks=pytest.mark.slow)],
    ids=["phone-vi-trouble", "desktop-en-trouble-without-javascript"],
)
def test_a_citizen_is_answered_although_the_carrier_is_in_trouble(
    demo, chromium, look, size, language, script, citizen
):
    number, code = demo["citizens"][citizen]
    words = TROUBLE[language]
    context = chromium.new_context(viewport=SIZES[size], java_script_enabled=script, locale="en-US")
    context.script = script
    page = context.new_page()

    # From the phone's page to the carrier's: two troubles are switched on, one of them at the second attempt.
    page.goto(f"{demo['phone']}?lang={language}")
    page.get_by_role("link", name=words["carrier"], exact=True).click()
    look(page, "carrier")
    page.get_by_role("heading", name=words["to phones"]).click()
    page.fill("#refuse input[name=value]", "no status")
    page.click("#refuse button")
    assert page.get_by_role("alert").inner_text() == words["wrong"]
    look(page, "wrong-value")
    page.fill("#refuse input[name=value]", "ESME_RTHROTTLED 50%")
    page.click("#refuse button")
    page.get_by_role("heading", name=words["from phones"]).click()
    page.fill("#cut-answers input[name=value]", "100%")
    page.click("#cut-answers button")
    assert page.locator(".is-on").count() == 2
    look(page, "carrier-on")

    # The citizen texts: the connection breaks, the reply is refused at first, and it comes.
    conversation = f"{demo['phone']}?phone=84{number}"
    page.goto(conversation)
    assert f"{words['carrier']} (2)" in page.inner_text("header")
    replies = page.locator("#thread .received", has_text=f"Tai khoan: {code}")
    before = replies.count()
    page.fill("#text", f"BH MK {code}")
    page.click("#write button")
    for _ in range(100):
        if replies.count() > before:
            break
        page.wait_for_timeout(200)
        if not script:
            page.goto(conversation)
    assert replies.count() == before + 1
    look(page, "answered")

    # All connections are cut, all troubles switched off.
    page.goto(f"{demo['phone']}carrier")
    page.get_by_role("button", name=words["cut"]).click()
    assert page.get_by_role("status").inner_text() == words["was cut"]
    page.get_by_role("button", name=words["all off"]).click()
    assert page.locator(".is-on").count() == 0
    context.close()


TROUBLE = {
    "vi": {
        "carrier": "Nhà mạng",
        "to phones": "Tin tới điện thoại",
        "from phones": "Tin từ điện thoại",
        "wrong": "Giá trị này không dùng được: refuse. Ví dụ: ESME_RSYSERR 100%",
        "cut": "Cắt mọi kết nối ngay",
        "was cut": "Đã cắt mọi kết nối.",
        "all off": "Tắt tất cả",
    },
    "en": {
        "carrier": "Carrier",
        "to phones": "Messages to phones",
        "from phones": "Messages from phones",
        "wrong": "This value cannot be used: refuse. For instance: ESME_RSYSERR 100%",
        "cut": "Cut all connections now",
        "was cut": "All connections were cut.",
        "all off": "Switch all off",
    },
}


@pytest.mark.slow
def test_the_command_that_it_prints_starts_the_example_and_one_signs_in_there(demo, chromium):
    number, code = demo["citizens"][2]
    example = subprocess.Popen(shlex.split(demo["example"]), stdout=subprocess.PIPE)
    try:
        site = re.search(r"Open (\S+)", said_until(example, "\n", 20))[1]
        page = chromium.new_context().new_page()
        page.goto(site)
        page.get_by_role("link", name="Sign in").click()
        reply = _text(demo["phone"], f"+84{number}", "8079", f"BH MK {code}")
        page.fill("[name=username]", code)
        page.fill("[name=password]", re.search(r"Mat khau: (\d{6})", reply)[1])
        page.locator("main form button").first.click()
        page.fill("[name=new_password]", "mot mat khau nua")
        page.get_by_role("button", name="Lưu và tiếp tục").click()
        assert "Phòng khám ví dụ" in page.inner_text("h1")
        page.locator("button[value=grant]").click()
        page.wait_for_selector("#sub")
        page.get_by_role("link", name="Sign out").click()
        page.get_by_role("button", name="Đăng xuất", exact=True).click()
        page.get_by_role("link", name="Sign in").wait_for()
    finally:
        example.terminate()
        example.communicate(timeout=10)
    # Other commands reach the demo's database as the example's README says.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
    environment |= {"CAPLAI_DATA_DIR": str(demo["folder"])}
    caplai = [sys.executable, "-m", "caplai", "clients"]
    listed = subprocess.run([*caplai, "list"], env=environment, capture_output=True, text=True, check=True)
    assert "Phòng khám ví dụ" in listed.stdout and f"{site}/back" in listed.stdout
