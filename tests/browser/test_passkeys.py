"""A person with a fingerprint (Chromium's virtual authenticator): from the text to signing in without a password."""

import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(300)]

SIZES = {"phone": {"width": 320, "height": 640}, "desktop": {"width": 1280, "height": 800}}
WORDS = {
    "vi": {
        "code": "Mã số BHXH",
        "password": "Mật khẩu",
        "sign in": "Đăng nhập",
        "sign out": "Đăng xuất",
        "finger": "Đăng nhập bằng vân tay hoặc khuôn mặt",
        "take": "Dùng vân tay hoặc khuôn mặt",
        "save": "Lưu và tiếp tục",
        "remember": "Ghi nhớ thiết bị này",
        "taken": "Từ nay bạn đăng nhập bằng vân tay hoặc khuôn mặt.",
        "failed": "Chưa thực hiện được, hoặc đã bị hủy.",
        "there": "Máy này đã đăng nhập được vào tài khoản này bằng vân tay hoặc khuôn mặt.",
        "add": "Thêm vân tay hoặc khuôn mặt",
        "rename": "Đổi tên",
        "name": "Tên",
        "store": "Lưu",
        "remove": "Xóa",
        "last": "Đây là cách đăng nhập duy nhất của bạn.",
    },
    "en": {
        "code": "Social insurance code",
        "password": "Password",
        "sign in": "Sign in",
        "sign out": "Sign out",
        "finger": "Sign in with fingerprint or face",
        "take": "Use fingerprint or face",
        "save": "Save and continue",
        "remember": "Remember this device",
        "taken": "From now on you sign in with your fingerprint or face.",
        "failed": "It did not work, or was cancelled.",
        "there": "This device can already sign in with fingerprint or face to this account.",
        "add": "Add fingerprint or face",
        "rename": "Rename",
        "name": "Name",
        "store": "Save",
        "remove": "Remove",
        "last": "It is your only way to sign in.",
    },
}


AXE = Path(__file__).parents[1] / "peers" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture
def see(look):
    """A look at the page by us and by axe-core, which is evaluated, for the site's policy lets no script be added."""

    def see(page, name):
        look(page, name)
        page.evaluate(f"window.axe || (() => {{ {AXE.read_text()} }})()")
        found = page.evaluate("axe.run().then((said) => said.violations.map((one) => one.id))")
        assert found == [], name

    return see


class Finger:
    """A device's authenticator, through the DevTools protocol: it holds passkeys, and a finger when there is one."""

    def __init__(self, page):
        self.session = page.context.new_cdp_session(page)
        self.session.send("WebAuthn.enable", {"enableUI": False})
        options = {
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": True,
            "hasUserVerification": True,
            "isUserVerified": True,
            "automaticPresenceSimulation": True,
        }
        self.id = self.session.send("WebAuthn.addVirtualAuthenticator", {"options": options})[
            "authenticatorId"
        ]

    def set(self, *, here=True, right=True):
        """Whether there is a finger at all, and whether it is the right one."""
        self.session.send("WebAuthn.setUserVerified", {"authenticatorId": self.id, "isUserVerified": right})
        self.session.send(
            "WebAuthn.setAutomaticPresenceSimulation", {"authenticatorId": self.id, "enabled": here}
        )

    @property
    def passkeys(self):
        return self.session.send("WebAuthn.getCredentials", {"authenticatorId": self.id})["credentials"]


class Person:
    """A citizen at a browser, with a phone."""

    def __init__(self, demo, chromium, citizen, size, language, script=True):
        self.demo, self.words, self.language = demo, WORDS[language], language
        self.number, self.code = demo["citizens"][citizen]
        self.context = chromium.new_context(viewport=SIZES[size], java_script_enabled=script, locale="en-US")
        self.context.script = script
        self.page = self.context.new_page()
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.finger = Finger(self.page) if script else None

    def texts(self):
        """Text 8079; the password that comes back."""
        phone = self.context.new_page()
        conversation = f"{self.demo['phone']}?phone=84{self.number}"

        def replies():
            phone.goto(conversation)
            return re.findall(rf"Tai khoan: {self.code}/Mat khau: (\d{{6}})", phone.inner_text("body"))

        before = replies()
        phone.fill("#text", f"bh mk {self.code}")
        phone.click("#write button")
        for _ in range(100):
            if len(now := replies()) > len(before):
                phone.close()
                return now[-1]
            phone.wait_for_timeout(100)
        raise AssertionError("no reply")

    def opens(self, path=""):
        self.page.goto(f"{self.demo['pages']}{path}?lang={self.language}")

    def signs_in(self, password):
        self.page.get_by_label(self.words["code"]).fill(self.code)
        self.page.get_by_label(self.words["password"], exact=True).fill(password)
        self.page.get_by_role("button", name=self.words["sign in"], exact=True).click()

    def button(self, name):
        return self.page.get_by_role("button", name=self.words[name], exact=True)

    def is_in(self):
        self.page.wait_for_url(self.demo["pages"])
        return self.code in self.page.inner_text("main")


@pytest.mark.parametrize(
    ("size", "language", "citizen"),
    [("phone", "vi", 0), ("desktop", "en", 1)],
    ids=["phone-vi", "desktop-en"],
)
def test_a_fingerprint_instead_of_a_password(demo, chromium, see, size, language, citizen):
    person = Person(demo, chromium, citizen, size, language)
    page, finger, words = person.page, person.finger, person.words

    # Nobody has a passkey yet; the browser asks for one in vain, and the person uses the text.
    issued = person.texts()
    finger.set(here=False)
    person.opens("login/")
    person.button("finger").wait_for()
    see(page, "passkey-sign-in")
    person.signs_in(issued)
    page.wait_for_url("**/choose-password/")

    # Fingerprint first: a wrong finger, then the right one, in one tap.
    take = person.button("take")
    take.wait_for()
    see(page, "passkey-choose")
    box = take.bounding_box()
    assert box["y"] + box["height"] < SIZES[size]["height"], "the fingerprint is on the first screen"
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.title().startswith(page.get_by_role("heading", level=1).inner_text())
    finger.set(right=False)
    take.click()
    page.get_by_text(words["failed"]).wait_for()
    see(page, "passkey-failed")
    assert finger.passkeys == []
    finger.set()
    take.click()
    assert person.is_in()
    assert words["taken"] in page.inner_text("main")
    see(page, "passkey-taken")
    [made] = finger.passkeys
    assert made["isResidentCredential"]
    assert made["rpId"] == "localhost"

    # It is listed, gets a name, and stays, for it is the only way in.
    person.opens("account/passkeys/")
    see(page, "passkey-list")
    page.get_by_role("link", name=words["rename"]).click()
    page.get_by_label(words["name"], exact=True).fill("Máy của Lan")
    see(page, "passkey-rename")
    person.button("store").click()
    page.get_by_text("Máy của Lan").first.wait_for()
    page.get_by_role("link", name=words["remove"]).click()
    see(page, "passkey-remove")
    person.button("remove").click()
    page.get_by_text(words["last"]).wait_for()
    see(page, "passkey-last")
    page.get_by_role("link", name=words["add"]).click()
    person.button("take").click()  # this device has one already
    page.get_by_text(words["there"]).wait_for()
    see(page, "passkey-add")
    finger.session.send("WebAuthn.clearCredentials", {"authenticatorId": finger.id})
    person.button("take").click()  # as another device would have it
    page.wait_for_url("**/account/passkeys/")
    assert page.locator(".cards > li").count() == 2
    assert len(finger.passkeys) == 1
    person.opens()

    # Out, and in again with one tap.
    finger.set(here=False)
    person.button("sign out").click()
    page.wait_for_url("**/login/")
    finger.set(right=False)
    person.button("finger").click()
    page.get_by_text(words["failed"]).wait_for()
    see(page, "passkey-not-shown")
    finger.set()
    box = page.get_by_label(words["remember"])
    assert box.is_checked()
    box.uncheck()
    person.button("finger").click()
    assert person.is_in()
    assert not [cookie for cookie in person.context.cookies() if "device" in cookie["name"]]

    # The password of the text is over.
    finger.set(here=False)
    person.button("sign out").click()
    page.wait_for_url("**/login/")
    person.signs_in(issued)
    page.locator(".errors").wait_for()

    # Forgotten that there is one: the device says so, and it is one tap to be in by it.
    issued = person.texts()
    person.signs_in(issued)
    page.wait_for_url("**/choose-password/")
    finger.set()
    person.button("take").click()
    page.get_by_text(words["there"]).wait_for()
    see(page, "passkey-there")
    finger.set(right=False)
    person.button("finger").click()
    page.get_by_text(words["failed"]).wait_for()
    finger.set()
    person.button("finger").click()
    assert person.is_in()
    assert len(finger.passkeys) == 1
    assert [error for error in person.errors if "status of 200" not in error] == []
    person.context.close()


def test_among_the_suggestions_of_the_field(demo, chromium):
    """Conditional mediation: the virtual authenticator picks what the person would."""
    person = Person(demo, chromium, 2, "phone", "vi")
    issued = person.texts()
    person.finger.set(here=False)
    person.opens("login/")
    person.signs_in(issued)
    page = person.page
    page.wait_for_url("**/choose-password/")
    person.finger.set()
    person.button("take").click()
    assert person.is_in()
    person.button("sign out").click()  # and is in again without a tap
    page.wait_for_url(demo["pages"])
    assert person.is_in()
    assert person.errors == []
    person.context.close()


def test_a_page_that_is_over_says_so_at_the_tap(demo, chromium):
    person = Person(demo, chromium, 2, "phone", "vi")
    issued = person.texts()
    person.opens("login/")
    person.signs_in(issued)
    page = person.page
    page.wait_for_url("**/choose-password/")
    page.route("**/options/", lambda route: route.abort())
    page.reload()
    person.button("take").click()  # no network
    page.get_by_text(person.words["failed"]).wait_for()
    page.unroute("**/options/")
    person.context.clear_cookies()
    person.button("take").click()
    page.get_by_text("Trang này đã mở quá lâu").first.wait_for()
    person.context.close()


def test_without_javascript_there_is_the_password(demo, chromium):
    person = Person(demo, chromium, 0, "phone", "vi", script=False)
    issued = person.texts()
    person.opens("login/")
    assert person.button("finger").count() == 0
    person.signs_in(issued)
    page = person.page
    page.wait_for_url("**/choose-password/")
    assert person.button("take").count() == 0
    page.fill("input[name=new_password]", "mot mat khau rieng")
    person.button("save").click()
    assert person.is_in()
    person.context.close()


def test_a_browser_without_a_fingerprint_has_the_page_of_before(demo, chromium):
    person = Person(demo, chromium, 1, "desktop", "en")
    person.finger.session.send("WebAuthn.removeVirtualAuthenticator", {"authenticatorId": person.finger.id})
    issued = person.texts()
    person.opens("login/")
    person.signs_in(issued)
    person.page.wait_for_url("**/choose-password/")
    person.page.wait_for_load_state("networkidle")
    assert person.button("take").count() == 0
    assert person.page.get_by_role("heading", level=1).inner_text() == "Set your own password"
    person.context.close()
