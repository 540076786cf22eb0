"""The site as an app: without a network it says so and still offers to text; what a page loads, it loads once."""

import pytest

from tests.browser.test_pages_look import AXE, SIZES, mailserver, server, site

__all__ = ["mailserver", "server", "site"]
pytestmark = [pytest.mark.peer, pytest.mark.slow]


def test_without_a_network_there_is_still_the_text(site, chromium):
    context = chromium.new_context(viewport=SIZES["phone"])
    context.add_cookies(site.cookies("owner"))
    page = context.new_page()
    page.goto(f"{site.url}/")
    page.evaluate("navigator.serviceWorker.ready")
    page.wait_for_function("navigator.serviceWorker.controller !== null")
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
    assert len(kept) == 3
    assert not any(code in text for text in kept.values())

    context.set_offline(True)
    for path in ("/", "/login/", "/account/email/"):
        page.goto(site.url + path)
        assert page.inner_text("h1") == "Không có mạng"
        links = page.locator('a[href^="sms:"]').all()
        assert [link.get_attribute("href") for link in links] == ["sms:8079?body=BH%20MK%20"] * 2
        assert page.evaluate("getComputedStyle(document.querySelector('.button')).minHeight") == "52px"
        assert code not in page.content()
    page.evaluate(f"(() => {{ {AXE.read_text()} }})()")
    assert page.evaluate("axe.run().then((found) => found.violations.map((one) => one.id))") == []

    context.set_offline(False)
    page.get_by_role("link", name="Thử lại").click()
    page.wait_for_function("document.querySelector('h1').innerText !== 'Không có mạng'")
    assert code in page.inner_text("main")
    context.close()


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
