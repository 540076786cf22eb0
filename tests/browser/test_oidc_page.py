"""A page without a server is a client: in Chromium it signs somebody in by fetch alone, from an origin of its own."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from caplai.portal.oidc import clients
from tests.portal.oidc.conftest import signing_key
from tests.signin.conftest import CHOSEN, citizen, login

__all__ = ["citizen", "login", "signing_key"]
pytestmark = [pytest.mark.slow, pytest.mark.peer]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def elsewhere():
    """Where the page is: any web server's, which knows nothing of us."""
    handler = functools.partial(Quiet, directory=Path(__file__).parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/client_page.html"
        server.shutdown()


def test_a_page_signs_somebody_in_renews_and_revokes(chromium, site, elsewhere, citizen, login):
    client, _ = clients.add("Trang tra cứu", [elsewhere], ["phone"], public=True)
    page = chromium.new_context().new_page()
    page.goto(f"{elsewhere}#issuer={site}&client={client.id}")
    page.fill("[name=username]", citizen.code)
    page.fill("[name=password]", CHOSEN)
    page.locator("main form button").first.click()
    page.locator("button[value=grant]").click()
    page.wait_for_function("document.querySelector('#sub, #error').textContent + sub.textContent")
    assert page.inner_text("#error") == ""
    assert len(page.inner_text("#sub")) == 64 and page.inner_text("#phone_number") == "+84327000686"
    assert (page.inner_text("#renewed"), page.inner_text("#revoked")) == ("200", "401")


def test_another_origin_can_read_nothing(chromium, site, elsewhere, citizen, login):
    """The same page, where the client that it names lives elsewhere: Chromium holds the answers back."""
    clients.add("Trang tra cứu", ["https://page.example.vn/"], ["phone"], public=True)
    clients.add("Phòng khám", [elsewhere], ["phone"])  # a site of its own server, which needs none of this
    page = chromium.new_context().new_page()
    page.goto(elsewhere)
    asked = """async (url) => {
      const said = (options) => fetch(url, options).then((answer) => answer.status, (error) => error.name);
      return [await said({ method: "POST", body: new URLSearchParams({ grant_type: "x" }) }),
              await said({ headers: { Authorization: "Bearer x" } })];
    }"""
    for name in ("token", "userinfo", "revoke", "introspect"):
        assert page.evaluate(asked, f"{site}/identity/o/api/{name}") == ["TypeError", "TypeError"]
