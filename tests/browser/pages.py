"""Every page of the citizen's: its name, as whom it is seen, and how one gets there.

Whoever adds a page adds it here: then tests/browser/test_pages_look.py looks at it in both languages, on a phone and on
a desktop, light and dark. tests/portal/test_every_page.py tells of a URL that is missing here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.db import transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from caplai.domain import capability
from caplai.domain.issuing import DIGITS, VERSION, Inputs, derive, new_case_ids
from caplai.service import addressbook, notices
from caplai.signin.kept import Kept
from caplai.store.contact import Address, Mail
from caplai.store.models import Account, Case, Event, Login
from tests.portal.forgetting import otp_of, read_phone
from tests.portal.oidc.conftest import Party
from tests.signin.conftest import CHOSEN, sign_in

Go = Callable[[object], None]


@dataclass(frozen=True)
class Page:
    name: str
    url: str | Callable[[], str]
    """The name of its URL, a path, or what makes one."""
    who: str = "stranger"
    """A function of `People`."""
    go: Go | None = None
    """What is done in the browser once it is open, for pages that only a form leads to."""
    status: int = 200
    also: tuple[str, ...] = ()
    """Names of other URLs that this page shows."""
    prints: str = ""
    """What must be on paper, too."""

    @property
    def path(self) -> str:
        url = self.url() if callable(self.url) else self.url
        return url if url.startswith("/") else reverse(url)


def submit(**fields: str) -> Go:
    """Fill these fields, by their names, and send the page's first form."""

    def go(page) -> None:
        for name, value in fields.items():
            page.fill(f"main [name={name}]", value)
        with page.expect_navigation():
            page.locator("main form button:visible").first.click()

    return go


def press(number: int) -> Go:
    """Send the page's form of that number, from nought."""

    def go(page) -> None:
        with page.expect_navigation():
            page.locator("main form button:visible").nth(number).click()

    return go


def then(*steps: Go) -> Go:
    def go(page) -> None:
        for step in steps:
            step(page)

    return go


def asked_by_a_client(**changes) -> Callable[[], str]:
    """The address that a client of OpenID Connect sends people to."""

    def path() -> str:
        settings.KEYRING._agreed = None  # other tests agree on theirs
        if not settings.KEYRING.read().get("oidc"):
            settings.KEYRING.add("oidc")
        return Party().asks(**changes)

    return path


def asked_to_sign_out() -> str:
    """Where a client leads that somebody signs out of."""
    return reverse("idp:oidc:logout") + f"?client_id={Party().id}"


_ELSEWHERE = (
    "Mozilla/5.0 (Linux; Android 8.1.0; SM-J260G) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/96.0.4664.45"
    " Mobile Safari/537.36"
)
CODE = "0123456780"
"""Nobody's."""
_asked = then(submit(code=CODE), press(0))

PAGES = [
    Page("sign-in", "account_login"),
    Page("sign-in-empty", "account_login", go=submit()),
    Page("sign-in-wrong", "account_login", go=submit(username="0123456789", password="nhầm rồi")),
    Page("sign-in-choosing", "account_login", "newcomer"),
    Page("choose", "choose_password", "newcomer", also=("take_passkey", "take_passkey_options")),
    Page("choose-proved", "choose_password", "linked"),
    Page("choose-refused", "choose_password", "newcomer", go=lambda page: _choose(page, "12345678")),
    Page("recover", "recover"),
    Page("recover-wrong", "recover", go=submit(code="12345")),
    Page("recover-ways", "recover", go=submit(code=CODE), also=("recover_ways",), prints=f"BH MK {CODE}"),
    Page("recover-otp", "recover", go=_asked, also=("recover_send", "recover_otp", "recover_again")),
    Page("recover-otp-none", "recover", go=then(_asked, submit(otp="12345"))),
    Page("recover-otp-wrong", "recover", go=then(_asked, submit(otp="123456"))),
    Page("recover-otp-over", "recover", go=then(_asked, *[submit(otp="123456")] * 3)),
    Page("recover-mail", "recover", go=then(submit(code=CODE), press(1))),
    Page("recover-link", "/recover/link/#ma-trong-duong-dan", also=("recover_link",)),
    Page("recover-link-none", "/recover/link/", go=submit()),
    Page("recover-link-over", "/recover/link/#ma-trong-duong-dan", go=press(0)),
    Page("recover-not-sent", "recover_said", "refused", status=429),
    Page("recover-done", "recover_done", "proved"),
    Page("recover-limit", "recover_done", "spent"),
    Page("home", "home", "owner"),
    Page("home-back", "home", "returned"),
    Page("home-first", "home", "arrived"),
    Page("home-beginner", "home", "beginner"),
    Page("password", "account_password", "owner"),
    Page("password-wrong", "account_password", "owner", go=submit(current_password="x", new_password="ngắn")),
    Page("password-none", "account_password", "finger only"),
    Page("devices", "account_devices", "owner", also=("account_device_end", "account_devices_end")),
    Page("devices-one", "account_devices", "beginner"),
    Page("history", "account_history", "returned"),
    Page("history-end", "/account/history/?before=1", "beginner"),
    Page("home-unasked", "home", "asked about", also=("account_read",)),
    Page("home-operator", "home", "operator"),
    Page("addresses", "account_email", "owner", also=("account_email_remove",)),
    Page("addresses-none", "account_email", "beginner"),
    Page("address-add", "account_email_add", "owner"),
    Page("address-add-wrong", "account_email_add", "owner", go=submit(email="lan@")),
    Page("address-confirm", "account_email_confirm", "owner", also=("account_email_again",)),
    Page("address-confirm-wrong", "account_email_confirm", "owner", go=submit(code="000000")),
    Page("sign-in-again", "account_email_add", "of yesterday", status=403, also=("sign_in_again",)),
    Page("services", "account_apps", "patient", also=("account_apps_end",)),
    Page("services-devices", "account_devices", "patient"),
    Page("services-history", "account_history", "patient"),
    Page("services-none", "account_apps", "beginner"),
    Page("client", asked_by_a_client(scope="openid email"), "owner", also=("idp:oidc:authorization",)),
    Page("client-again", asked_by_a_client(prompt="login"), "owner"),
    Page("client-operator", asked_by_a_client(), "operator", status=403),
    Page("client-sign-out", asked_to_sign_out, "owner", also=("idp:oidc:logout",)),
    Page("client-sign-out-operator", "/identity/o/logout", "operator"),
    Page("client-wrong", asked_by_a_client(redirect_uri="https://elsewhere.example/"), "owner"),
    Page("passkeys", "account_passkeys", "owner"),
    Page("passkeys-none", "account_passkeys", "beginner"),
    Page("passkey-add", "account_passkey_add", "owner", also=("account_passkey_add_options",)),
    Page(
        "passkey-rename",
        lambda: _of_the_passkey("account_passkey_rename"),
        "owner",
        also=("account_passkey_rename",),
    ),
    Page(
        "passkey-rename-empty", lambda: _of_the_passkey("account_passkey_rename"), "owner", go=submit(name="")
    ),
    Page(
        "passkey-remove",
        lambda: _of_the_passkey("account_passkey_remove"),
        "owner",
        also=("account_passkey_remove",),
    ),
    Page("report", "account_report", "owner"),
    Page("report-by-link", lambda: _reporting(), "owner", also=("report",)),
    Page("report-over", "/report/x/", status=404),
    Page("reported", lambda: _reporting(), "beginner", go=lambda page: _report(page)),
    Page("not-found", "/khong-co/", status=404),
    Page("bad-request", "/login/?x=" + "9" * 10, go=lambda page: _too_big(page), status=400),
    Page("old-page", "account_login", go=lambda page: _without_cookies(page), status=403),
    Page("offline", "offline"),
]

NO_PAGES = {
    "account_logout": "by POST; leads to the sign-in",
    "sign_in_by_passkey": "by POST, from the sign-in",
    "sign_in_by_passkey_options": "JSON for passkeys.js",
    **{
        f"idp:oidc:{name}": "JSON for clients"
        for name in ("configuration", "jwks", "token", "userinfo", "revoke", "introspect")
    },
    ".well-known/assetlinks.json": "JSON for phones",
    ".well-known/apple-app-site-association": "JSON for phones",
    "manifest": "JSON for the browser",
    "service_worker": "a script",
}
"""URLs that show no page, and why."""


def _choose(page, password: str) -> None:
    page.fill("[name=new_password]", password)
    with page.expect_navigation():
        page.locator("form:has([name=new_password]) button:visible").first.click()


def _of_the_passkey(name: str) -> str:
    return reverse(name, args=[Authenticator.objects.get().pk])


def _reporting() -> str:
    """The link of a mail to the account that there is."""
    code = Account.objects.get().code
    Address.objects.get_or_create(
        account=code, email="old@vidu.example", confirmed_at=timezone.now() - timedelta(days=30)
    )
    with transaction.atomic():
        notices.tell(code, "password_chosen")
    ring = settings.KEYRING.ring("pepper")
    mail = Mail.objects.filter(account=code, kind="password_chosen").last()
    return reverse("report", args=[capability.token(ring.keys[ring.active], notices.LABEL, mail.name)])


def _report(page) -> None:
    if page.locator("main form").count():  # the second to look finds it reported
        press(0)(page)


def _without_cookies(page) -> None:
    page.context.clear_cookies(name="csrftoken")
    submit(username="0123456789", password="x")(page)


def _too_big(page) -> None:
    page.evaluate("document.querySelector('[name=username]').value = '9'.repeat(2700000)")
    with page.expect_navigation():
        page.locator("main form button:visible").first.click()


class People:
    """Those who look at the pages. Each function makes a browser that is in their state."""

    def stranger(self) -> Client:
        return Client()

    def newcomer(self) -> Client:
        """She has just signed in with the password of the text."""
        account = self._account("0123456781")
        return self._in(account.code, _issued(account))

    def linked(self) -> Client:
        """She has just opened the link of an e-mail."""
        account = self._account("0123456770")
        browser = self._in(account.code, _issued(account))
        session = browser.session
        pending = session["account_login"]
        pending["state"]["stages"]["choose_password"]["data"].update(typed=False, remembers=None)
        session["account_login"] = pending
        session.save()
        return browser

    def owner(self) -> Client:
        """She has everything: addresses (one waits for its code), a passkey, a past."""
        account = self._account("0123456782", email="lan.nguyen@vidu.example.vn")
        login = self._login(account)
        self._in(account.code, CHOSEN, headers={"User-Agent": _ELSEWHERE})
        browser = self._in(account.code, CHOSEN)
        _issued(account, ended=timezone.now() - timedelta(days=3))
        Address.objects.create(
            account=account.code,
            email="huong@vidu.example.vn",
            confirmed_at=timezone.now() - timedelta(days=9),
        )
        addressbook.add(login, "nguyen.thi.lan.huong.1954@mailbox.example.com")
        Authenticator.objects.create(
            user=login, type="webauthn", data={"name": "Chrome, Android", "credential": {}}
        )
        return browser

    def beginner(self) -> Client:
        """She has a password, and nothing else."""
        account = self._account("0123456783")
        self._login(account)
        return self._in(account.code, CHOSEN)

    def returned(self) -> Client:
        """She was given a new password today, and has chosen one of her own; what she had before stays for a day."""
        account = self._account("0123456787")
        login = self._login(account)
        long_ago = timezone.now() - timedelta(days=9)
        Address.objects.create(account=account.code, email="huong@vidu.example.vn", confirmed_at=long_ago)
        Authenticator.objects.create(
            user=login,
            type="webauthn",
            data={"name": "Chrome, Android", "credential": {}},
            created_at=long_ago,
        )
        browser = self._in(account.code, _issued(account))
        chosen = browser.post("/choose-password/", {"new_password": "một mật khẩu khác"})
        assert chosen.status_code == 302
        return browser

    def arrived(self) -> Client:
        """She came by a text message today, chose a password, and has never had anything else."""
        account = self._account("0123456799")
        browser = self._in(account.code, _issued(account))
        chosen = browser.post("/choose-password/", {"new_password": CHOSEN})
        assert chosen.status_code == 302
        return browser

    def asked_about(self) -> Client:
        """Somebody texted for a new password yesterday, and by page just now; she was signed in before, and is now."""
        account = self._account("0123456798")
        self._login(account)
        self._in(account.code, CHOSEN)
        Event.objects.update(at=timezone.now() - timedelta(days=3))
        _issued(account, ended=timezone.now() - timedelta(days=1))
        Case.objects.filter(account=account.code).update(ended_as="guessed_out")
        browser = self._in(account.code, CHOSEN)
        _issued(account)
        return browser

    def finger_only(self) -> Client:
        """She signs in with her finger, and never chose a password."""
        account = self._account("0123456788")
        login = self._login(account)
        browser = self._in(account.code, CHOSEN)
        login.set_unusable_password()
        login.save()
        browser.force_login(login)
        session = browser.session
        session["account_authentication_methods"] = [{"method": "mfa", "at": timezone.now().timestamp()}]
        session.save()
        return browser

    def of_yesterday(self) -> Client:
        """She signed in long ago."""
        account = self._account("0123456784")
        self._login(account)
        browser = self._in(account.code, CHOSEN)
        session = browser.session
        for record in session["account_authentication_methods"]:
            record["at"] -= 3600
        session.save()
        return browser

    def proved(self) -> Client:
        """She forgot the password, and has just typed the right one-time code."""
        return self._proved(self._account("0123456785"))

    def refused(self) -> Client:
        """She, or somebody else, has asked for too many one-time codes today."""
        later = timezone.now() + timedelta(hours=9)
        kept, browser = Kept(said=["not_sent", "too_many", later.isoformat()]), Client()
        kept.type(CODE)
        browser.cookies.update(kept.put(HttpResponse()).cookies)
        return browser

    def spent(self) -> Client:
        """She has had as many new passwords as there are for a day, and proved the code once more."""
        account = self._account("0123456786")
        for hours in (1, 2, 3):
            _issued(account, ended=timezone.now() - timedelta(hours=hours))
        return self._proved(account)

    def patient(self) -> Client:
        """She signs in to a clinic with her account."""
        account = self._account("0123456789")
        self._login(account)
        browser = self._in(account.code, CHOSEN)
        asked_by_a_client()()
        bank = Party(name="Ngân hàng")
        bank.tokens(browser)
        browser.post(reverse("account_apps_end"), {"client_id": bank.id})
        Party(name="Phòng khám Đa khoa Hoà Bình").tokens(browser, scope="openid email")
        self._in(account.code, CHOSEN)
        return browser

    def operator(self) -> Client:
        login = Login(username="thu.ha", is_staff=True)
        login.set_password(CHOSEN)
        login.save()
        return self._in(login.username, CHOSEN)

    def _proved(self, account: Account) -> Client:
        browser = Client()
        assert browser.post("/recover/send/", {"code": account.code, "channel": "sms"}).status_code == 302
        [(_phone, text)] = read_phone()
        page = browser.post("/recover/otp/", {"otp": otp_of(text)}, follow=True)
        assert page.redirect_chain[-1][0].startswith(reverse("recover_done"))
        return browser

    def _in(self, name: str, password: str, **request) -> Client:
        browser = Client(**request)
        assert sign_in(browser, name, password).status_code == 302
        return browser

    def _account(self, code: str, **more) -> Account:
        return Account.objects.create(code=code, phone="+84327000686", state="approved", **more)

    def _login(self, account: Account) -> Login:
        login = Login(username=account.code, account=account)
        login.set_password(CHOSEN)
        login.save()
        return login


def _issued(account: Account, *, ended=None) -> str:
    """A case of the account as a re-issue opens it, and the password of its text."""
    ring = settings.KEYRING.ring("issuing")
    now = timezone.now()
    case = Case.objects.create(
        account=account.code,
        id=next(new_case_ids()),
        phone=account.phone,
        channel="sms",
        key=ring.active,
        version=VERSION,
        length=6,
        alphabet=DIGITS,
        opened_at=ended or now,
        expires_at=(ended or now) + timedelta(hours=24),
        ended_at=ended,
        ended_as="used" if ended else None,
    )
    return derive(ring.keys[ring.active], Inputs(VERSION, case.id, account.code, 6, DIGITS))
