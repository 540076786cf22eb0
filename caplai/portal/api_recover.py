"""The app's endpoints of a forgotten password: the pages of recover.py by the same verbs. docs/app-api.md."""

from typing import Annotated, ClassVar

from allauth.headless.base.response import AuthenticationResponse
from allauth.headless.constants import Client
from allauth.headless.internal.restkit.response import APIResponse, ErrorResponse
from django import forms
from django.http import HttpRequest, HttpResponse
from django.urls import path
from pydantic import Field
from typing_extensions import TypedDict

from caplai.domain.otp import Channel, Sending
from caplai.portal import recover
from caplai.portal.recover import LinkForm, OtpForm, SendForm, asker
from caplai.portal.recover_said import say_decided, say_not_sent, say_over
from caplai.service import forgotten, forgotten_proof
from caplai.service.forgotten import Asked, Standing
from caplai.service.forgotten_came import Came
from caplai.service.forgotten_proof import Proof
from caplai.signin.adapter import put_off
from caplai.signin.answers import Time, shape
from caplai.signin.api import Endpoint
from caplai.signin.context import how_to_get_a_password
from caplai.signin.kept import find, handle, remember

_OUTCOMES = (
    "`issued`, `joined`, `over_limit`, `closed`, `mismatch` or `held`; null until a one-time code was right."
)


@shape
class RecoveryText(TypedDict):
    """What to text where."""

    short_code: str
    text: str
    link: str
    """With the account's code put behind it, it writes the text."""


@shape
class RecoveryWays(TypedDict):
    """How one gets back in here."""

    sms: bool
    """Whether one-time codes are sent so."""
    email: bool
    text: RecoveryText


@shape
class RecoveryOutcome(TypedDict):
    """What came of a request. (Annotated, for docstrings are not inherited.)"""

    outcome: Annotated[str | None, Field(description=_OUTCOMES)]
    title: Annotated[str | None, Field(description="The outcome for people, in their language.")]
    text: Annotated[str | None, Field(description="What it means and what to do now, in their language.")]
    until: Annotated[Time | None, Field(description="Of `over_limit`: when to try again; null: now.")]
    by_text: Annotated[
        bool, Field(description="Of `over_limit`: whether a text to the short code would be answered now.")
    ]
    by_email: Annotated[bool, Field(description="Of `over_limit`: whether a mail would be of use now.")]


@shape
class RecoveryRequest(RecoveryOutcome):
    """How a request stands; the same for every code until the right one-time code was typed."""

    id: str
    """Which of the session's requests it is."""
    channel: Channel
    expires_at: Time
    again_at: Time | None
    """From when on the same one-time code can be sent again; null: not any more."""
    tries: int
    """How many are left."""
    over: bool


@shape
class Recovery(TypedDict):
    """A request."""

    request: RecoveryRequest


@shape
class RecoveryByLink(TypedDict):
    """A request whose link was opened."""

    request: RecoveryOutcome


@shape
class RecoveryStart(TypedDict):
    """The ways, and this session's request."""

    ways: RecoveryWays
    request: RecoveryRequest | None


_SESSION = "recovery"
"""What the session keeps: the secrets of its last requests, of which the database has hashes."""


class WhichForm(forms.Form):
    """{"request": …}: a request's `id`; the newest unless said."""

    request = forms.CharField(required=False, max_length=20)


class OtpOfForm(OtpForm, WhichForm):
    """{"otp": …, "request": …}."""


class Recover(Endpoint):
    """GET: the ways, and how this session's request stands. POST {"code", "channel"}: have an OTP sent; 200,
    or why not: 400, 429, 503.
    """

    http_method_names: ClassVar[list[str]] = ["get", "post"]
    input_class: ClassVar = {"POST": SendForm}
    answers: ClassVar = {"GET": RecoveryStart, "POST": Recovery}

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        how, rules = how_to_get_a_password(), recover.rules()
        text = {name: how[name] for name in ("short_code", "text", "link")}
        ways = {"sms": rules.can_send(Channel.SMS), "email": rules.can_send(Channel.EMAIL), "text": text}
        secret = _named(request)
        standing = forgotten.look(secret, rules=rules)
        told = _tell(standing, secret) if standing and secret else None
        return APIResponse(request, data={"ways": ways, "request": told})

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        rules = recover.rules()
        asked = forgotten.ask(
            self.input.cleaned_data["code"],
            asker(request),
            secret=None,
            others=request.session.get(_SESSION, []),
            rules=rules,
            channel=self.input.cleaned_data["channel"],
        )
        if asked.secret is not None:
            request.session[_SESSION] = remember(request.session.get(_SESSION, []), asked.secret)
        if asked.sending is not Sending.SENT:
            return _not_sent(request, asked)
        return _stands(request, asked.secret)


class Again(Endpoint):
    """POST {"request"}: have the same OTP sent again, not before `again_at`; 200, 400, 409 (no request), 429."""

    http_method_names: ClassVar[list[str]] = ["post"]
    input_class = WhichForm
    answers: ClassVar = {"POST": Recovery}

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        rules, secret = recover.rules(), _named(request, self.input)
        asked = forgotten.again(secret, asker(request), rules=rules)
        if asked.sending is None:
            return _over(request)
        if asked.sending is not Sending.SENT:
            return _not_sent(request, asked)
        return _stands(request, secret)


class Otp(Endpoint):
    """POST {"otp", "request"}: 200 with what was decided, 401 with the pending flow `choose_password`, or 400, 409,
    429, 503.
    """

    http_method_names: ClassVar[list[str]] = ["post"]
    input_class = OtpOfForm
    answers: ClassVar = {"POST": Recovery}

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        rules, secret = recover.rules(), _named(request, self.input)
        found = forgotten_proof.prove(secret, self.input.cleaned_data["otp"], asker(request), rules=rules)
        if found.proof is Proof.DONE:
            if (response := recover.choose(request, found)) is not None:
                return AuthenticationResponse.from_response(request, response)
            return _stands(request, secret)
        if found.proof is Proof.OVER:
            standing = forgotten.look(secret, rules=rules)
            return _stands(request, secret) if standing and standing.came else _over(request)
        if found.proof is Proof.WRONG and not found.tries:
            return _over(request)
        self.input.refuse(found)
        status = recover.STATUS.get(found.proof)
        refused = ErrorResponse(request, input=self.input, status=status or 400)
        if status:
            request.checked = found
            put_off(request, refused, status)
        return refused


class FromLink(Endpoint):
    """POST {"token"}, from the link of an e-mail: 401 with the pending flow `choose_password`, or 200, 400, 409."""

    http_method_names: ClassVar[list[str]] = ["post"]
    input_class = LinkForm
    answers: ClassVar = {"POST": RecoveryByLink}

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        found = forgotten_proof.prove_link(
            self.input.cleaned_data["token"],
            asker(request),
            rules=recover.rules(),
            kept=request.session.get(_SESSION, []),
        )
        if found.proof is not Proof.DONE or found.came is None:
            return _over(request)
        if (response := recover.choose(request, found)) is not None:
            return AuthenticationResponse.from_response(request, response)
        return APIResponse(request, data={"request": _came(found.came)})


def _named(request: HttpRequest, named: forms.Form | None = None) -> str | None:
    """The secret of the request that is named, or of the newest."""
    return find(request.session.get(_SESSION, []), named.cleaned_data["request"] if named else "")


def _stands(request: HttpRequest, secret: str | None) -> HttpResponse:
    standing = forgotten.look(secret, rules=recover.rules())
    if standing is None or secret is None:
        return _over(request)
    return APIResponse(request, data={"request": _tell(standing, secret)})


def _tell(standing: Standing, secret: str) -> RecoveryRequest:
    return {
        "id": handle(secret),
        **_came(standing.came),
        "channel": standing.channel,
        "expires_at": standing.expires_at.isoformat(),
        "again_at": standing.again_at.isoformat() if standing.again_at else None,
        "tries": standing.tries,
        "over": standing.over,
    }


def _came(came: Came | None) -> RecoveryOutcome:
    if came is None:
        return {
            "outcome": None,
            "title": None,
            "text": None,
            "until": None,
            "by_text": False,
            "by_email": False,
        }
    said = say_decided(came)
    return {
        "outcome": str(came.decided),
        "title": str(said.title),
        "text": str(said.text),
        "until": came.until.isoformat() if came.until else None,
        "by_text": came.by_text,
        "by_email": came.by_email,
    }


def _not_sent(request: HttpRequest, asked: Asked) -> HttpResponse:
    assert asked.sending is not None
    said = say_not_sent(asked.sending, asked.retry_at)
    response = APIResponse(
        request,
        status=429,
        errors=[{"code": f"otp_{asked.sending}", "message": f"{said.title}. {said.text}"}],
    )
    response["Retry-After"] = recover.retry_after(asked.retry_at)
    return response


def _over(request: HttpRequest) -> HttpResponse:
    said = say_over()
    return APIResponse(
        request, status=409, errors=[{"code": "otp_over", "message": f"{said.title}. {said.text}"}]
    )


urlpatterns = [
    path(name, view.as_api_view(client=Client.APP))
    for name, view in {
        "recover": Recover,
        "recover/again": Again,
        "recover/otp": Otp,
        "recover/link": FromLink,
    }.items()
]
