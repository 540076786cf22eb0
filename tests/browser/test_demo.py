"""A person with a browser: text from the virtual phone, sign in with what comes back, choose a password.

`caplai demo` runs as its user would run it. SCREENSHOTS=FOLDER keeps a picture of each page.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = {"phone": {"width": 360, "height": 740}, "desktop": {"width": 1280, "height": 800}}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A running `caplai demo`: the two addresses and the three citizens that it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
    environment |= {"CAPLAI_DATA_DIR": str(tmp_path_factory.mktemp("demo")), "CAPLAI_PORT": "0"}
    if "CAPLAI_PG_BIN" in os.environ:
        environment["CAPLAI_PG_BIN"] = os.environ["CAPLAI_PG_BIN"]
    process = subprocess.Popen(
        [sys.executable, "-m", "caplai", "demo"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        said = said_until(process, "Ctrl-C stops all of it.", 60)
        yield {
            "phone": re.search(r"the virtual phone\s+(\S+)", said)[1],
            "pages": re.search(r"the sign-in page\s+(\S+)", said)[1],
            "citizens": re.findall(r"phone \+84(\d{9})\s+text: BH MK (\d{10})", said),
        }
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 0, rest
    assert "Traceback" not in rest


def said_until(process, words, seconds):
    said, end = b"", time.monotonic() + seconds
    while words.encode() not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(0, end - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
        assert chunk, f"it said only: {said.decode()}"
        said += chunk
    return said.decode()


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def look(request):
    """Take a picture of a page, and see that nothing sticks out at the side."""

    def look(page, name):
        if not page.context.script:
            return  # then a page cannot be measured
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= page.viewport_size["width"], f"{name} scrolls sideways"
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            case = re.sub(r"\W+", "-", request.node.callspec.id)
            page.screenshot(path=Path(folder) / f"{case}-{name}.png", full_page=name != "phone")

    return look


@pytest.mark.parametrize(
    ("size", "language", "script", "citizen"),
    [("phone", "vi", True, 0), ("desktop", "en", True, 1), ("phone", "vi", False, 2)],
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
    page.get_by_role("button", name="Đăng nhập" if vi else "Sign in").click()
    assert page.title().startswith("Lỗi" if vi else "Error")
    look(page, "wrong")
    page.get_by_label("Mã số BHXH" if vi else "Social insurance code").fill(code)
    page.get_by_label("Mật khẩu" if vi else "Password", exact=True).fill(issued)
    look(page, "sign-in")
    page.get_by_role("button", name="Đăng nhập" if vi else "Sign in").click()

    # One page, one thing to do.
    page.wait_for_url("**/choose-password/")
    page.fill("input[name=new_password]", "mot mat khau rieng")
    look(page, "choose")
    page.locator("main form button").first.click()
    page.wait_for_url(demo["pages"])
    assert code in page.inner_text("main")
    look(page, "home")

    # Out, and in again with the password of one's own.
    page.get_by_role("button", name="Đăng xuất" if vi else "Sign out").click()
    page.goto(f"{demo['pages']}login/")
    page.get_by_label("Mã số BHXH" if vi else "Social insurance code").fill(code)
    page.get_by_label("Mật khẩu" if vi else "Password", exact=True).fill("mot mat khau rieng")
    page.get_by_role("button", name="Đăng nhập" if vi else "Sign in").click()
    page.wait_for_url(demo["pages"])
    assert code in page.inner_text("main")
    assert errors == []
    context.close()
