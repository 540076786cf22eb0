"""What all tests with a browser share: a running `caplai demo`, Chromium, and a look at each page."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.test.testcases import LiveServerThread

CHROMIUM = shutil.which("chromium")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = {"phone": {"width": 360, "height": 740}, "desktop": {"width": 1280, "height": 800}}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A running `caplai demo`: what it prints (addresses, citizens, how the example is started), and its folder."""
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
            "example": re.search(r"^  (\S+ \S*client\.py .*)$", said, re.MULTILINE)[1],
            "folder": Path(environment["CAPLAI_DATA_DIR"]) / "demo",
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


@pytest.fixture(scope="session")
def started():
    """One browser for all of a process' tests, since they come last there (tests/spread.py): what keeps a loop of
    asyncio in this thread lets no test after it have its own.
    """
    with launched() as browser:
        yield browser


@pytest.fixture
def chromium(started):
    """The browser; what a test opened in it is closed after it."""
    yield started
    for context in started.contexts:
        context.close()


@contextmanager
def launched():
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed")
    api = pytest.importorskip("playwright.sync_api")
    with pytest.MonkeyPatch.context() as patch, api.sync_playwright() as running:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "yes")  # playwright keeps a loop in this thread
        for clicked in (api.Locator, api.Page):
            patch.setattr(clicked, "click", _click_and_load(clicked.click))
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=60_000)
        yield browser
        browser.close()


def _click_and_load(click):
    """Playwright's click waits for a new page to begin. What is read from it next wants the whole of it."""

    def click_and_load(self, *args, **kwargs):
        click(self, *args, **kwargs)
        getattr(self, "page", self).wait_for_load_state()

    return click_and_load


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
            parameters = getattr(request.node, "callspec", None)
            case = re.sub(r"\W+", "-", parameters.id if parameters else request.node.name)
            page.screenshot(path=Path(folder) / f"{case}-{name}.png", full_page=name != "phone")

    return look


@pytest.fixture
def site(transactional_db, settings):
    """Our pages as a web server serves them, on the test's own database; the address. (pytest-django's `live_server`
    answers for /static/ itself, by other names than ours.)
    """
    settings.ALLOWED_HOSTS = ["*"]
    server = LiveServerThread("127.0.0.1", static_handler=lambda pages: pages)
    server.daemon = True
    server.start()
    server.is_ready.wait()
    assert server.error is None
    yield f"http://127.0.0.1:{server.port}"
    server.terminate()


@pytest.fixture(autouse=True)
def static_files_as_they_are_served(monkeypatch):
    """pytest-django's live server knows no names with a hash in them; whitenoise, behind it, does."""
    monkeypatch.setattr(
        "django.contrib.staticfiles.handlers.StaticFilesHandler._should_handle", lambda *_: False
    )
