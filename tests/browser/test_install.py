"""The site as an app: without a network it says so and still offers to text; what a page loads, it loads once."""

import pytest
from django.test.testcases import LiveServerThread

from tests.browser.test_pages_look import AXE, SIZES, mailserver, server, site

__all__ = ["mailserver", "server", "site"]
pytestmark = [pytest.mark.peer, pytest.mark.slow]


AWAY = "Chưa kết nối được"


def _with_a_worker(page, url: str) -> None:
    page.goto(url)
    page.evaluate("navigator.serviceWorker.ready")
    page.wait_for_function("navigator.serviceWorker.controller !== null")


def test_without_a_network_there_is_still_the_text(site, chromium):
    context = chromium.new_context(viewport=SIZES["phone"])
    context.add_cookies(site.cookies("owner"))
    page = context.new_page()
    _with_a_worker(page, f"{site.url}/")
    code = page.inner_text("dl .code")
    page.goto(f"{site.url}/account/email/")
    kept = page.evaluate(
        """async () => {
          const found = {};
          for (const name of await caches.keys())
            for (const request of await (await caches.open(name)).keys())
              found[new URL(request.url).pathname] = await (await caches.match(request)).text();
          return found;
        }"""
    )
    assert {path.split(".")[0] for path in kept} == {"/offline/", "/static/caplai"}
    assert len(kept) == 4
    assert not any(code in text for text in kept.values())

    context.set_offline(True)
    for path in ("/", "/login/", "/account/email/?older=1#here"):
        page.goto(site.url + path)
        assert page.inner_text("h1") == AWAY
        assert "chưa có Internet" in page.inner_text("main")
        links = page.locator('a[href^="sms:"]').all()
        assert [link.get_attribute("href") for link in links] == ["sms:8079?body=BH%20MK%20"] * 2
        assert page.evaluate("getComputedStyle(document.querySelector('.button')).minHeight") == "52px"
        assert code not in page.content()
    page.evaluate(f"(() => {{ {AXE.read_text()} }})()")
    assert page.evaluate("axe.run().then((found) => found.violations.map((one) => one.id))") == []

    context.set_offline(False)
    page.get_by_role("link", name="Thử lại").click()
    page.wait_for_function(f"document.querySelector('h1').innerText !== '{AWAY}'")
    assert page.url == f"{site.url}/account/email/?older=1#here"
    assert page.inner_text("h1") == "Email"
    context.close()


def test_with_a_network_but_without_us_it_blames_no_network(transactional_db, chromium, monkeypatch):
    monkeypatch.setattr("django.test.testcases.QuietWSGIRequestHandler.protocol_version", "HTTP/1.0")
    ours = LiveServerThread("localhost", lambda handler: handler)
    ours.daemon = True
    ours.start()
    ours.is_ready.wait()
    context = chromium.new_context(viewport=SIZES["phone"])
    page = context.new_page()
    _with_a_worker(page, f"http://localhost:{ours.port}/login/")
    ours.terminate()
    page.goto(f"http://localhost:{ours.port}/recover/")
    assert page.inner_text("h1") == AWAY
    assert "Hãy kiểm tra mạng, hoặc thử lại sau ít phút." in page.inner_text("main")
    assert "Internet. Hãy bật" not in page.inner_text("main")
    assert page.locator('a[href^="sms:"]').first.is_visible()
    context.close()


def test_back_to_what_a_form_was_answered_is_left_to_the_browser(site, chromium):
    """Where the page's script did not come, say, which sees to it that Back opens the page anew."""
    context = chromium.new_context(viewport=SIZES["phone"])
    page = context.new_page()
    page.add_init_script("History.prototype.replaceState = () => {}")
    _with_a_worker(page, f"{site.url}/login/")
    page.fill("[name=username]", "0123456780")
    page.fill("[name=password]", "nhầm rồi")
    page.locator("main form button").first.click()
    page.wait_for_selector(".errors")
    page.goto(f"{site.url}/recover/")
    with pytest.raises(Exception, match="ERR_CACHE_MISS"):  # it asks whether to send the form again
        page.go_back()
    context.close()


def test_an_impatient_second_tap_sends_nothing_but_a_later_one_does(site, chromium):
    page = chromium.new_context(viewport=SIZES["phone"]).new_page()
    page.goto(f"{site.url}/recover/")
    page.evaluate(
        """() => { window.prevented = []; addEventListener("submit", (event) => {
             prevented.push(event.defaultPrevented); event.preventDefault(); }); }"""
    )
    for pause in (0, 300, 4000):  # the last by somebody who has stopped the page meanwhile
        page.wait_for_timeout(pause)
        page.evaluate("document.querySelector('main form button').click()")
    assert page.evaluate("prevented") == [False, True, False]


def test_browsers_find_it_fit_to_be_installed(site, chromium):
    context = chromium.new_context(viewport=SIZES["phone"])
    page = context.new_page()
    page.goto(f"{site.url}/login/")
    page.evaluate("navigator.serviceWorker.ready")
    wire = context.new_cdp_session(page)
    said = wire.send("Page.getAppManifest")
    assert said["url"] == f"{site.url}/manifest.webmanifest"
    assert said["errors"] == []
    hindrances = [one["errorId"] for one in wire.send("Page.getInstallabilityErrors")["installabilityErrors"]]
    assert set(hindrances) <= {"in-incognito"}  # as all of playwright's windows are
    context.close()


def test_the_second_page_loads_nothing_but_itself(site, chromium):
    context = chromium.new_context(viewport=SIZES["phone"], service_workers="block")  # it hides the wire
    page = context.new_page()
    wire = context.new_cdp_session(page)
    wire.send("Network.enable")
    octets = []
    wire.on("Network.loadingFinished", lambda event: octets.append(int(event["encodedDataLength"])))
    loads = []
    for path in ("/login/", "/recover/"):
        octets.clear()
        page.goto(site.url + path, wait_until="networkidle")
        loads.append([one for one in octets if one])
    print(
        f"first page: {len(loads[0])} loads, {sum(loads[0])} octets; second: {len(loads[1])}, {sum(loads[1])}"
    )
    assert len(loads[0]) >= 3
    assert len(loads[1]) == 1
    assert sum(loads[1]) < 6_000
    context.close()
