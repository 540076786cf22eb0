"""The app's endpoints of my account: what the pages of account.py show and do, for an app."""

from datetime import datetime
from typing import ClassVar, Literal

from allauth.headless.base.response import AuthenticationResponse, ForbiddenResponse, UnauthorizedResponse
from allauth.headless.constants import Client
from allauth.headless.internal.restkit.response import APIResponse, ErrorResponse
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import path
from typing_extensions import TypedDict

from caplai.portal.access import is_fresh
from caplai.portal.account import (
    microseconds,
    moment_of,
    read_until,
    sign_out_elsewhere,
    sign_out_of,
    summary,
    unasked,
)
from caplai.portal.forms import ReadForm
from caplai.portal.password_form import ChangeForm
from caplai.portal.told import tell
from caplai.service import history, sittings
from caplai.service.changing import Change
from caplai.service.history import Entry
from caplai.service.sittings import Seat
from caplai.signin.answers import SignedIn, Time, shape
from caplai.signin.api import Endpoint, refuse
from caplai.signin.client import name_of


@shape
class KeptAfterReissue(TypedDict):
    """What was there before a re-issue."""

    kind: Literal["passkey", "email"]
    name: str
    since: Time | None
    """Of an address null: longer than this service knows."""


@shape
class AfterReissue(TypedDict):
    """What cannot be removed for a day after a re-issue."""

    kept_until: Time
    kept: list[KeptAfterReissue]


@shape
class UnaskedReissue(TypedDict):
    """A re-issue that the session was not told of: ask the person whether it was them."""

    at: Time
    title: str
    """For people, in their language, as are the details."""
    details: list[str]
    channel: str
    """`sms`, `web`, `app`, `email` or `counter`."""
    state: str
    """`open`, or what it ended as: `expired`, `guessed_out`, …"""


@shape
class ShownAccount(TypedDict):
    """The account of who is signed in."""

    code: str
    phone: str
    """Masked, as `0327xxx686`."""
    has_password: bool
    password_set_at: Time | None
    passkeys: list[str]
    """Their names."""
    emails: list[str]
    signed_in: int
    """On how many devices."""
    unasked_reissues: list[UnaskedReissue]
    """Opened since the sign-in before this one, and used by nobody; the newest first, until they are read
    (`account/read`).
    """
    after_reissue: AfterReissue | None
    """For 24 hours after one."""


@shape
class ShownDevice(TypedDict):
    """A device where one is signed in, or that is remembered."""

    id: str
    name: str
    """For people, in their language."""
    client: str
    """Program and system."""
    signed_in: bool
    remembered: bool
    here: bool
    """It is the one that asks."""
    since: Time | None
    seen: Time | None


@shape
class ShownEntry(TypedDict):
    """Something that happened to the account. There may be more kinds some day: show `title` and `details`."""

    at: Time
    what: str
    """`case` (a re-issue), `otp`, `signed_in`, `wrong_passwords`, `password_changed`,
    `service_signed_in`, `service_ended`, …
    """
    title: str
    """For people, in their language, as are the details."""
    details: list[str]
    channel: str | None
    """`sms`, `web`, `app`, `email` or `counter`."""
    phone: str | None
    """Masked."""
    client: str | None
    how: str | None
    """Of a sign-in: `password` or `passkey`."""
    service: str | None
    """The other service that somebody signed in to (`service_signed_in`) or ended (`service_ended`)."""
    count: int
    """Of a case: texts with its password; else wrong tries."""
    state: str | None
    """Of a case: `open`, `used`, `expired`, `guessed_out`, …; of an OTP: `proved`, or why it came to nothing."""
    until: Time | None
    """Of a case: when it ends, or ended."""


class OfOwner(Endpoint):
    """Who is signed in to an account; others hear that nobody is (401)."""

    def dispatch(self, request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        if not request.user.is_authenticated or request.user.account is None:
            return UnauthorizedResponse(request)
        return super().dispatch(request, *args, **kwargs)


class Account(OfOwner):
    """GET: what the account's first page shows."""

    http_method_names: ClassVar[list[str]] = ["get"]
    answers: ClassVar = {"GET": ShownAccount}

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        shown = summary(request)
        until = shown["until"]
        kept: list[KeptAfterReissue] = [
            {"kind": one["kind"], "name": one["name"], "since": _time(one["since"])} for one in shown["kept"]
        ]
        data: ShownAccount = {
            "code": shown["account"].code,
            "phone": shown["phone"],
            "has_password": shown["has_password"],
            "password_set_at": _time(shown["password_set_at"]),
            "passkeys": shown["passkeys"],
            "emails": shown["emails"],
            "signed_in": shown["signed_in"],
            "unasked_reissues": [_reissue(entry) for entry in shown["unasked"]],
            "after_reissue": {"kept_until": until.isoformat(), "kept": kept} if until else None,
        }
        return APIResponse(request, data=data)


class Read(OfOwner):
    """POST {"until"}: the re-issues were read whose `at` is no later; 200 with those that are left, 400, 401."""

    input_class = ReadForm
    http_method_names: ClassVar[list[str]] = ["post"]
    answers: ClassVar = {"POST": list[UnaskedReissue]}

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        read_until(request, self.input.cleaned_data["until"])
        return APIResponse(request, data=[_reissue(entry) for entry in unasked(request)])


class Password(OfOwner):
    """POST {"current_password"?, "new_password"}: 200 with another session token, or 400, 401, 403, 429, 503."""

    input_class = ChangeForm
    http_method_names: ClassVar[list[str]] = ["post"]
    answers: ClassVar = {"POST": SignedIn}

    def dispatch(self, request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        if request.user.is_authenticated and not request.user.has_usable_password() and not is_fresh(request):
            return ForbiddenResponse(request)
        return super().dispatch(request, *args, **kwargs)

    def get_input_kwargs(self) -> dict:
        return {"login": self.request.user}

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        match self.input.change(request):
            case Change.CHANGED:
                return AuthenticationResponse(request)
            case Change.ENDED:
                return UnauthorizedResponse(request)
        return refuse(request, self.input)

    def handle_invalid_input(self, input) -> ErrorResponse:  # noqa: A002 (allauth's name)
        return refuse(self.request, input)


class Devices(OfOwner):
    """GET: where one is signed in or remembered. DELETE: sign out everywhere else; the session token changes."""

    http_method_names: ClassVar[list[str]] = ["get", "delete"]
    answers: ClassVar = {"GET": list[ShownDevice], "DELETE": SignedIn}

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        return APIResponse(
            request, data=[_seat(seat) for seat in sittings.seats(request.user, request.session.row_key)]
        )

    def delete(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        return (
            AuthenticationResponse(request) if sign_out_elsewhere(request) else UnauthorizedResponse(request)
        )


class Device(OfOwner):
    """DELETE: sign out of one and forget it; 200, or 404 if there is none (any more), or it is the one that asks."""

    http_method_names: ClassVar[list[str]] = ["delete"]

    def delete(self, request: HttpRequest, name: str, *args, **kwargs) -> HttpResponse:
        return APIResponse(request, status=200 if sign_out_of(request, name) else 404)


class History(OfOwner):
    """GET: what happened, a page of it; `?before=` with `meta.older` of the page before for the next."""

    http_method_names: ClassVar[list[str]] = ["get"]
    answers: ClassVar = {"GET": list[ShownEntry]}

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        page = history.page(request.user, settings.CAPLAI.grammar, moment_of(request.GET.get("before", "")))
        older = page.older and str(microseconds(page.older))
        return APIResponse(request, data=[_entry(entry) for entry in page.entries], meta={"older": older})


def _seat(seat: Seat) -> ShownDevice:
    return {
        "id": seat.name,
        "name": name_of(seat.client),
        "client": seat.client,
        "signed_in": seat.signed_in,
        "remembered": seat.remembered,
        "here": seat.here,
        "since": _time(seat.since),
        "seen": _time(seat.seen),
    }


def _reissue(entry: Entry) -> UnaskedReissue:
    told = tell(entry)
    return {
        "at": entry.at.isoformat(),
        "title": told.title,
        "details": told.details,
        "channel": entry.channel,
        "state": entry.state,
    }


def _entry(entry: Entry) -> ShownEntry:
    told = tell(entry)
    return {
        "at": entry.at.isoformat(),
        "what": entry.what,
        "title": told.title,
        "details": told.details,
        "channel": entry.channel or None,
        "phone": entry.phone or None,
        "client": entry.client or None,
        "how": entry.how or None,
        "service": entry.service or None,
        "count": entry.count,
        "state": entry.state or None,
        "until": _time(entry.until),
    }


def _time(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


urlpatterns = [
    path(name, view.as_api_view(client=Client.APP))
    for name, view in {
        "": Account,
        "read": Read,
        "password": Password,
        "devices": Devices,
        "devices/<slug:name>": Device,
        "history": History,
    }.items()
]
