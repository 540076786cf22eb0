"""Sign in by passkey, and take one instead of a password after a re-issue: what the pages' forms post.

passkeys.js asks for the options by POST, has the browser show or make the passkey, and posts the form with it.
"""

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.login import perform_login, record_authentication
from allauth.account.models import Login as PendingLogin
from allauth.account.utils import get_next_redirect_url, passthrough_next_redirect_url
from allauth.mfa.models import Authenticator
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST
from django.views.generic import View

from caplai.service.using import Choice
from caplai.signin import webauthn
from caplai.signin.backend import REMEMBERS
from caplai.signin.views import InStage
from caplai.watch import metrics

for _outcome in ("passkey", "passkey_refused"):
    metrics.signins.labels(_outcome)


@require_POST
def sign_in_options(request: HttpRequest) -> HttpResponse:
    """What the browser needs to ask for a passkey of this site, as JSON."""
    return options(webauthn.request_options(request))


@require_POST
def sign_in(request: HttpRequest) -> HttpResponse:
    """The form with the passkey that was shown: to a session, or back with the reason."""
    passkey = webauthn.shown(request, webauthn.parsed(request.POST.get("credential", "")))
    metrics.signins.labels("passkey" if passkey else "passkey_refused").inc()
    if passkey is None:
        messages.error(request, not_shown())
        return redirect(passthrough_next_redirect_url(request, reverse("account_login"), "next"))
    setattr(request, REMEMBERS, wants_to_be_remembered(request))
    return arrive(request, passkey, get_next_redirect_url(request))


def arrive(request: HttpRequest, passkey: Authenticator, redirect_url: str | None = None) -> HttpResponse:
    """Open a session for whom `webauthn.shown` has found; for page and app. Whoever was in is not any more."""
    if request.user.is_authenticated:
        get_adapter().logout(request)
    record_authentication(request, passkey.user, "mfa", id=passkey.pk, type=passkey.type, passwordless=True)
    return perform_login(request, PendingLogin(user=passkey.user, redirect_url=redirect_url))


class TakePasskeyOptions(InStage, View):
    """POST: what the browser needs to make the passkey, as JSON."""

    http_method_names = ("post",)

    def post(self, request: HttpRequest) -> HttpResponse:
        return options(webauthn.creation_options(request, self.stage.login.user, here=True))


class TakePasskey(InStage, View):
    """POST: the form with the passkey that was made; it ends the case as a password of one's own does."""

    http_method_names = ("post",)

    def post(self, request: HttpRequest) -> HttpResponse:
        login = self.stage.login.user
        credential = webauthn.made(request, login, webauthn.parsed(request.POST.get("credential", "")))
        if credential is None or webauthn.is_full(login):
            messages.error(request, not_made())
            return redirect("choose_password")
        setattr(request, REMEMBERS, wants_to_be_remembered(request))
        match self.stage.take_passkey(credential, webauthn.name_for(request)):
            case Choice.CHOSEN:
                response = self.stage.exit()
                messages.success(request, _("From now on you sign in with your fingerprint or face."))
                return response
        return self.over()


def wants_to_be_remembered(request: HttpRequest) -> bool:
    """What the page's box says, which passkeys.js copies."""
    return bool(request.POST.get("remember"))


def options(given: dict | None) -> HttpResponse:
    """As passkeys.js and fido's libraries expect them. Raises Http404 where there are no passkeys."""
    if given is None:
        raise Http404
    return JsonResponse(given)


def not_shown() -> str:
    """Why nobody was signed in, in words for every reason."""
    return _("Fingerprint or face did not work this time. Try again, or sign in with your password.")


def not_made() -> str:
    """Why no passkey was stored, in words for every reason."""
    return _("Fingerprint or face could not be saved. Try again, or set a password.")
