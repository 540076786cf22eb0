"""A citizen, her open case and its password, browsers and an app, for all tests of the sign-in."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from caplai.domain.issuing import DIGITS, LETTERS, VERSION, Inputs, derive, new_case_ids
from caplai.service import credentials
from caplai.signin import backend
from caplai.store.models import Account, Case, Login
from tests.signin import described

CHOSEN = "con mèo trèo cây cau"
API = "/_allauth/app/v1/"


@pytest.fixture
def citizen(db) -> Account:
    """Code 0012345678: leading zeros matter."""
    return Account.objects.create(
        code="0012345678", phone="+84327000686", email="lan@example.vn", state="approved"
    )


@dataclass
class Opened:
    case: Case
    password: str


@pytest.fixture
def open_case(citizen) -> Callable[..., Opened]:
    """Open a case as a re-issue does, and say what the text would."""

    def open_(
        *,
        account: str = citizen.code,
        length: int = 6,
        alphabet: str | None = None,
        lifetime: timedelta = timedelta(hours=24),
    ) -> Opened:
        ring = settings.KEYRING.ring("issuing")
        alphabet = alphabet or (DIGITS if length < 10 else LETTERS)
        now = timezone.now()
        case = Case.objects.create(
            account=account,
            id=next(new_case_ids()),
            phone="+84327000686",
            channel="sms",
            key=ring.active,
            version=VERSION,
            length=length,
            alphabet=alphabet,
            opened_at=now,
            expires_at=now + lifetime,
        )
        return Opened(
            case, derive(ring.keys[ring.active], Inputs(VERSION, case.id, account, length, alphabet))
        )

    return open_


@pytest.fixture
def login(citizen) -> Login:
    """Her login, as an earlier sign-in left it, with the password CHOSEN."""
    login = Login(username=citizen.code, account=citizen)
    login.set_password(CHOSEN)
    login.save()
    return login


@pytest.fixture
def operator(db) -> Login:
    login = Login(username="thu.ha", is_staff=True)
    login.set_password("bảy con cò trắng")
    login.save()
    return login


@pytest.fixture
def browser() -> Client:
    return Client()


class App:
    """An app: JSON, the session token and the device token that it was given. Each answer is held to the document."""

    def __init__(self) -> None:
        self.session: str | None = None
        self.device: str | None = None

    def call(self, method: str, path: str, body: dict | None = None):
        headers = {"X-Session-Token": self.session, "X-Device-Token": self.device}
        response = Client().generic(
            method,
            API + path,
            json.dumps(body) if body is not None else "",
            content_type="application/json",
            headers={name: value for name, value in headers.items() if value},
        )
        described.hold(method, (API + path).partition("?")[0], response)
        if response["Content-Type"] == "application/json":
            meta = response.json().get("meta", {})
            self.session = meta.get("session_token", self.session)
            self.device = meta.get("device_token", self.device)
        return response

    def sign_in(self, username: str, password: str):
        return self.call("POST", "auth/login", {"username": username, "password": password})

    def choose(self, password: str):
        return self.call("POST", "auth/choose_password", {"new_password": password})

    @property
    def is_in(self) -> bool:
        return self.call("GET", "auth/session").status_code == 200


@pytest.fixture
def app(db) -> App:
    return App()


def sign_in(client: Client, username: str, password: str, **extra):
    """By the form as it comes, with its box ticked; `remember=False`: without."""
    box = {"remember": "on"} if extra.pop("remember", True) else {}
    return client.post("/login/", {"username": username, "password": password, **box}, **extra)


def is_in(client: Client) -> bool:
    return client.get("/").status_code == 200


def wrong(case: Opened) -> str:
    """Six digits that are not the case's."""
    return f"{(int(case.password) + 1) % 1_000_000:06}" if case.password.isdigit() else "XXXXXXXXXX"


@pytest.fixture
def rules_with(monkeypatch) -> Callable[..., credentials.Rules]:
    """Change the sign-in's rules for one test."""

    def change(**changes) -> credentials.Rules:
        changed = dataclasses.replace(backend.rules(), **changes)
        for module in ("backend", "stages"):
            monkeypatch.setattr(f"caplai.signin.{module}.rules", lambda: changed)
        return changed

    return change
