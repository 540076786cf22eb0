"""Each page of the citizen's, looked at: on a small phone in Vietnamese, light and dark; with SCREENSHOTS=FOLDER, which
keeps the pictures, those of print and of forced colours too, in both languages on a phone and a desktop. (That takes
four times as long, and CI has its limit.)

axe-core finds nothing, nothing sticks out at the side, it weighs less than 60 kB with all that it loads, asks no other
site, and says no error.
"""

import os
import re
from pathlib import Path

import pytest
from django.test.testcases import LiveServerThread

from tests.browser.pages import PAGES, People
from tests.mailbox import running
from tests.portal.forgetting import rules_with

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(300)]

AXE = Path(__file__).parents[1] / "peers" / "node_modules" / "axe-core" / "axe.min.js"
SIZES = {"phone": {"width": 320, "height": 640}, "desktop": {"width": 1280, "height": 800}}
LOOKS = [("phone", "vi")]
if "SCREENSHOTS" in os.environ:
    LOOKS += [("desktop", "en"), ("phone", "en"), ("desktop", "vi")]
HEAVIEST = 60_000


class Site:
    """The site, and the cookies of those who look at it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._browsers = {}

    def cookies(self, who: str) -> list[dict]:
        if who not in self._browsers:
            self._browsers[who] = getattr(People(), who.replace(" ", "_"))()
        jar = self._browsers[who].cookies
        return [{"name": name, "value": morsel.value, "url": self.url} for name, morsel in jar.items()]


@pytest.fixture(scope="module")
def server():
    """The site as it is served, static files by ourselves."""
    thread = LiveServerThread("localhost", lambda handler: handler)
    thread.daemon = True
    thread.start()
    thread.is_ready.wait()
    yield thread
    thread.terminate()


@pytest.fixture(scope="module")
def mailserver():
    with running() as (_box, mailserver):
        yield mailserver


@pytest.fixture
def site(server, mailserver, transactional_db, settings, monkeypatch):
    settings.CAPLAI = settings.CAPLAI.model_copy(update={"mail": mailserver})
    budgets = dict.fromkeys(("code_day", "phone_day", "network_day", "prefix_hour", "site_hour"), 1000)
    monkeypatch.setattr("caplai.portal.recover.rules", lambda: rules_with(budgets=budgets))
    return Site(f"http://localhost:{server.port}")


class Visit:
    """A page that was opened in a fresh browser, and what was heard meanwhile."""

    def __init__(self, site: Site, chromium, shown, size: str, language: str) -> None:
        self.site, self.shown, self.size, self.language = site, shown, size, language
        self.context = chromium.new_context(viewport=SIZES[size])
        self.context.add_cookies(
            [*site.cookies(shown.who), {"name": "lang", "value": language, "url": site.url}]
        )
        self.page = self.context.new_page()
        self.errors, self.asked, self.octets = [], [], 0
        self.statuses = {}
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("response", lambda response: self.statuses.update({response.url: response.status}))
        wire = self.context.new_cdp_session(self.page)
        wire.send("Network.enable")
        wire.on("Network.loadingFinished", self._weigh)

    def _hear(self, said) -> None:
        # A page with another status than 200 is told of in the console by Chromium itself.
        if said.type in ("error", "warning") and not re.search(r"status of (4\d\d|503)", said.text):
            self.errors.append(said.text)

    def _weigh(self, event) -> None:
        self.octets += int(event["encodedDataLength"])

    def large_letters(self) -> None:
        """Letters of twice the size, as somebody sets it in the browser or in the phone."""
        self.page.evaluate("document.styleSheets[0].insertRule('html { font-size: 200% }')")

    def usual_letters(self) -> None:
        self.page.evaluate("document.styleSheets[0].deleteRule(0)")

    def open(self) -> None:
        self.page.goto(self.site.url + self.shown.path, wait_until="load" if self.shown.go else "networkidle")
        if self.shown.go:
            self.octets = 0
            self.shown.go(self.page)
            self.page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("shown", PAGES, ids=lambda page: page.name)
def test_page(site, chromium, shown):
    for size, language in LOOKS:
        visit = Visit(site, chromium, shown, size, language)
        visit.open()
        page, where = visit.page, f"{shown.name}, {size}, {language}"
        assert visit.statuses[page.url.partition("#")[0]] == shown.status, where
        assert visit.errors == [], where
        assert visit.octets < HEAVIEST, f"{where}: {visit.octets} octets"
        assert all(url.startswith((site.url, "data:")) for url in visit.asked), where
        _says_what_it_is(page, shown, language, where)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= SIZES[size]["width"], f"{where} scrolls sideways"
        _targets_are_large(page, where)
        visit.large_letters()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= SIZES[size]["width"], f"{where} scrolls sideways with letters of twice the size"
        _keep(page, f"{shown.name}-{size}-{language}-large")
        visit.usual_letters()
        for scheme, rules in (("light", []), ("dark", ["color-contrast"])):
            page.emulate_media(color_scheme=scheme)
            assert _axe(page, rules) == [], f"{where}, {scheme}"
            _keep(page, f"{shown.name}-{size}-{language}-{scheme}")
        page.emulate_media(color_scheme="light", forced_colors="active")
        _keep(page, f"{shown.name}-{size}-{language}-forced")
        page.emulate_media(media="print", forced_colors="none")
        if shown.prints:
            assert page.get_by_text(shown.prints).first.is_visible(), f"{where}, on paper"
        _keep(page, f"{shown.name}-{size}-{language}-print")
        visit.context.close()


BILINGUAL = {"bad-request", "offline"}
"""Pages that are the same in whatever language they are asked for: Vietnamese, then English."""


def _says_what_it_is(page, shown, language: str, where: str) -> None:
    assert page.locator("html").get_attribute("lang") == ("vi" if shown.name in BILINGUAL else language), (
        where
    )
    [heading] = page.locator("h1:visible").all()
    title = page.title()
    assert heading.inner_text().strip(), where
    assert " – " in title and not title.startswith(" – "), where
    if language == "vi":
        assert not re.search(r"\b(the|your|password|sign in)\b", page.inner_text("main"), re.I) or (
            shown.name in BILINGUAL
        ), where


def _targets_are_large(page, where: str) -> None:
    """What is tapped is 44 px high or more, but for links within a sentence (WCAG 2.2, 2.5.5)."""
    small = page.evaluate(
        """() => [...document.querySelectorAll("a, button, input, select, summary")]
          .filter((one) => one.type !== "hidden" && !one.closest(".unseen, .skip") && one.getClientRects().length)
          .filter((one) => getComputedStyle(one).display !== "inline" && !["checkbox", "radio"].includes(one.type))
          .filter((one) => one.getBoundingClientRect().height < 44)
          .map((one) => one.outerHTML.slice(0, 120))"""
    )
    assert small == [], where


def _axe(page, rules: list[str]) -> list[str]:
    """What axe-core finds by these rules (none: by all), a line each. Evaluated, since a script element would break the
    site's policy.
    """
    page.evaluate(f"window.axe || (() => {{ {AXE.read_text()} }})()")
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{violation['id']}: {node['html'][:160]} ({(node['failureSummary'] or '')[:200]})"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def _keep(page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
