"""What allauth asks us: how to authenticate, which stages there are, what an app is told about who is in."""

import dataclasses
from datetime import datetime
from typing import ClassVar

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.internal.flows.login import get_authentication_records
from allauth.core.internal.httpkit import headed_redirect_response, is_headless_request
from allauth.headless.adapter import DefaultHeadlessAdapter
from allauth.headless.tokens.strategies.sessions import SessionTokenStrategy
from django.conf import settings
from django.contrib.auth import authenticate
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from caplai.domain import msisdn
from caplai.domain.replies import whole_minute
from caplai.service import arriving
from caplai.service.arriving import Arrival
from caplai.service.credentials import Outcome
from caplai.signin.backend import DEVICE_COOKIE, REMEMBERS, device_token
from caplai.signin.client import client_of
from caplai.signin.kept import forget
from caplai.signin.stages import ISSUED_CASE

THROTTLED, TRY_AGAIN = "too_many_login_attempts", "try_again"
"""The codes of the errors that are not about the password: 429 and 503 (views.py, api.py)."""
_RETRY_SECONDS = 60
_YEAR = 365 * 24 * 3600


class AccountAdapter(DefaultAccountAdapter):
    """The sign-in alone: no signing up, no e-mail, no limits but our own (service/credentials.py)."""

    error_messages: ClassVar[dict] = {
        **DefaultAccountAdapter.error_messages,
        "username_password_mismatch": _(
            "The code or the password is not right. Look at the newest message, or press “Get a new password”."
        ),
        THROTTLED: _(
            "There were too many wrong passwords from the network that you are on (maybe by somebody else). Try"
            " again after %(time)s."
        ),
        TRY_AGAIN: _("We cannot check this password just now. Try again in a minute."),
    }

    def is_open_for_signup(self, request) -> bool:
        return False

    def get_login_stages(self) -> list[str]:
        return ["caplai.signin.stages.ChoosePasswordStage"]

    def authenticate(self, request, **given):
        """The login that a password leads to, to a session or to its stage; None if it is wrong.

        Raises ValidationError (THROTTLED, TRY_AGAIN) where the password was not looked at.
        """
        login = authenticate(request, **given)
        checked = getattr(request, "checked", None)
        if login is not None or checked is None:
            return login
        match checked.outcome:
            case Outcome.ISSUED:
                setattr(checked.login, ISSUED_CASE, checked.case_id)
                return checked.login
            case Outcome.THROTTLED:
                raise throttled(checked.retry_at)
            case Outcome.TRY_AGAIN:
                raise self.validation_error(TRY_AGAIN)
        return None

    def post_login(self, request, user, **details):
        session = request.session
        arrival = Arrival(session.row_key, _client(request), _how(request, user))
        brought = device_token(request)
        # An app is its owner's own.
        remember = is_headless_request(request) is not None or getattr(request, REMEMBERS, True)
        request.device_token = arriving.signed_in(user, brought, session.save, arrival, remember)
        if request.device_token is None:
            self.logout(request)
            return headed_redirect_response("account_login")
        response = super().post_login(request, user, **details)
        if is_headless_request(request):
            return response
        if request.device_token:
            response.set_cookie(
                DEVICE_COOKIE,
                request.device_token,
                max_age=_YEAR,
                httponly=True,
                secure=settings.SESSION_COOKIE_SECURE,
                samesite="Lax",
            )
        elif brought:
            response.delete_cookie(DEVICE_COOKIE, samesite="Lax")
        forget(response)
        return response

    def add_message(self, *args, **kwargs) -> None:
        """Nothing: our pages say what there is to say."""

    def respond_user_inactive(self, request, user):
        return headed_redirect_response("account_login")


@dataclasses.dataclass(repr=False)
class User:
    """Who is in, for an app. The phone is masked."""

    id: int
    username: str
    display: str
    has_usable_password: bool
    phone: str | None
    email: str | None


class HeadlessAdapter(DefaultHeadlessAdapter):
    def get_user_dataclass(self) -> type:
        return User

    def user_as_dataclass(self, user) -> User:
        account = user.account
        return User(
            id=user.pk,
            username=user.username,
            display=user.username,
            has_usable_password=user.has_usable_password(),
            phone=msisdn.mask(account.phone) if account else None,
            email=account.email if account else None,
        )


class TokenStrategy(SessionTokenStrategy):
    """allauth's session tokens; a completed sign-in hands out the device's token beside it."""

    def create_access_token_payload(self, request) -> dict | None:
        token = getattr(request, "device_token", None)
        return {"device_token": token} if token else None


def throttled(until: datetime) -> ValidationError:
    """That nothing was looked at, and when it will be."""
    time = timezone.localtime(whole_minute(until)).strftime("%H:%M")
    return ValidationError(AccountAdapter.error_messages[THROTTLED], THROTTLED, {"time": time})


def _client(request: HttpRequest) -> str:
    return client_of(request.headers.get("User-Agent", ""), app=is_headless_request(request))


def _how(request: HttpRequest, user) -> str:
    """By what it was proved who is in: `password`, or `passkey`."""
    records = get_authentication_records(request, user)
    return "passkey" if any(record.get("method") == "mfa" for record in records) else "password"


def put_off(request: HttpRequest, response: HttpResponse, status: int) -> None:
    """Make it the answer to a request that was not looked at: when to repeat it (RFC 9110, 10.2.3)."""
    until = getattr(getattr(request, "checked", None), "retry_at", None)
    seconds = max(1, int((until - timezone.now()).total_seconds()) + 1) if until else _RETRY_SECONDS
    response.status_code = status
    response["Retry-After"] = str(seconds)
    # Django would log each 503 as an error; what is wrong is logged once, where it is found.
    response._has_been_logged = True
