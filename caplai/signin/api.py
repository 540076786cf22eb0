"""The app's endpoints: those of allauth's headless ones that we offer, and the one that chooses a password."""

from typing import Any, ClassVar

from allauth.account.internal.flows.login import perform_password_login
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.headless.account.views import LoginView, SessionView
from allauth.headless.base.response import (
    AuthenticationResponse,
    ConflictResponse,
    UnauthorizedResponse,
    get_config_data,
)
from allauth.headless.base.views import APIView, AuthenticationStageAPIView
from allauth.headless.constants import Client
from allauth.headless.internal.restkit.response import APIResponse, ErrorResponse
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import path
from django.utils.translation import gettext as _

from caplai.service.using import Choice
from caplai.signin import webauthn
from caplai.signin.adapter import put_off
from caplai.signin.answers import SignedIn, SiteOffers
from caplai.signin.forms import ChooseForm, LoginInput
from caplai.signin.stages import ChoosePasswordStage, drop_pending
from caplai.signin.views import refusal_status


class Endpoint(APIView):
    """Refuses other methods than its own (405) and bodies that are not JSON (415) before anything is read."""

    answers: ClassVar[dict[str, Any]] = {}
    """What `data` is when a method answers 200 (signin/answers.py); one that is not here has none."""

    def handle(self, request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        if (request.method or "").lower() not in self.http_method_names:
            return self.http_method_not_allowed(request)
        if request.body and request.content_type != "application/json":
            return HttpResponse(status=415)
        return super().handle(request, *args, **kwargs)

    def _parse_json(self, request: HttpRequest):
        """Refuses (400) also what the parser gives up on: a hundred thousand brackets, a number of 4,301 digits."""
        try:
            return super()._parse_json(request)
        except (RecursionError, ValueError):
            raise ImmediateHttpResponse(HttpResponse(status=400)) from None


class Config(Endpoint):
    """GET: what the site offers."""

    http_method_names: ClassVar[list[str]] = ["get"]
    answers: ClassVar = {"GET": SiteOffers}

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        passkeys = webauthn.site(request) is not None
        offers = {"supported_types": ["webauthn"] if passkeys else [], "passkey_login_enabled": passkeys}
        return APIResponse(request, data={**get_config_data(request), "mfa": offers})


class Session(Endpoint, SessionView):
    """GET: who is in (200), or what is pending (401). DELETE: sign out, which answers 401."""

    http_method_names: ClassVar[list[str]] = ["get", "delete"]
    answers: ClassVar = {"GET": SignedIn}


class SignIn(Endpoint, LoginView):
    """POST {"username", "password"}: 200, or 401 with the pending flow `choose_password`, or 400, 409, 429, 503."""

    input_class = LoginInput
    http_method_names: ClassVar[list[str]] = ["post"]
    answers: ClassVar = {"POST": SignedIn}

    def handle_input(self, data) -> HttpResponse | None:
        """Before the password is looked at: nobody must be in. Who was about to choose a password no longer is."""
        if self.request.user.is_authenticated:
            return ConflictResponse(self.request)
        drop_pending(self.request)
        return super().handle_input(data)

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        response = perform_password_login(
            request, {}, self.input.login
        )  # what it is given, the session keeps
        return AuthenticationResponse.from_response(request, response)

    def handle_invalid_input(self, input) -> ErrorResponse:  # noqa: A002 (allauth's name)
        return refuse(self.request, input)


class ChoosePassword(Endpoint, AuthenticationStageAPIView):
    """POST {"new_password"} with X-Session-Token: 200 as a sign-in, 400, 401 (nothing pending), 409, 503."""

    stage_class = ChoosePasswordStage
    input_class = ChooseForm
    http_method_names: ClassVar[list[str]] = ["get", "post"]
    answers: ClassVar = {"POST": SignedIn}

    def get_input_kwargs(self) -> dict:
        return {"login": self.stage.login.user}

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        """401 with the pending flow, as the session answers it."""
        return UnauthorizedResponse(request)

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        match self.stage.choose(self.input.cleaned_data["new_password"]):
            case Choice.CHOSEN:
                return self.respond_next_stage()
            case Choice.ENDED:
                return case_ended(request)
            case Choice.SAME_AS_ISSUED:
                self.input.refuse_issued()
            case Choice.TRY_AGAIN:
                self.input.refuse_for_now()
        return refuse(request, self.input)


def case_ended(request: HttpRequest) -> APIResponse:
    """409: what was pending has ended."""
    message = _("This password can no longer be used. Sign in again, or get a new one.")
    return APIResponse(request, status=409, errors=[{"code": "case_ended", "message": message}])


def refuse(request: HttpRequest, form) -> ErrorResponse:
    """The answer to a form with errors: 400, or what its errors say that are not about what was typed."""
    status = refusal_status(form)
    response = ErrorResponse(request, input=form, status=status or 400)
    if status:
        put_off(request, response, status)
    return response


urlpatterns = [
    path(name, view.as_api_view(client=Client.APP))
    for name, view in {
        "config": Config,
        "auth/session": Session,
        "auth/login": SignIn,
        "auth/choose_password": ChoosePassword,
    }.items()
]
