"""A client's sign-out that asks whether to sign out here, too (OpenID Connect RP-Initiated Logout 1.0).

A link signs nobody out: whoever is in is asked, each time, and the answer is a form of ours. What the client says is
used as far as it is proved, and otherwise left aside (section 4 there): an address to go to that is not registered
leads nowhere, a hint that we did not sign is none.
"""

from typing import Any
from urllib.parse import urlencode

from allauth.account.adapter import get_adapter as get_account_adapter
from allauth.idp.oidc import views as allauth_views
from allauth.idp.oidc.adapter import get_adapter
from allauth.idp.oidc.forms import RPInitiatedLogoutForm
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _

from caplai.domain import msisdn
from caplai.portal.oidc import grants
from caplai.portal.oidc.middleware import leading_to
from caplai.signin.views import csrf_failure

_KEPT = ("id_token_hint", "client_id", "post_logout_redirect_uri", "state", "ui_locales")
"""What the question has to know when it is answered."""


class LogoutForm(RPInitiatedLogoutForm):
    """allauth's, by which client and hint fit each other. Where people are sent is as registered, to the letter: it
    would take other ports and queries, and all of an origin or a scheme where nothing is registered.
    """

    def __init__(self, data, **kwargs) -> None:
        # PostgreSQL takes no text with a null character.
        super().__init__({name: data[name] for name in data if "\0" not in data[name]}, **kwargs)

    def clean(self) -> dict[str, Any]:
        asked = self.cleaned_data.pop("post_logout_redirect_uri", "")
        cleaned = super().clean() or {}
        client = cleaned["client"]
        fits = client is not None and asked in client.get_post_logout_redirect_uris()
        return {**cleaned, "post_logout_redirect_uri": asked if fits else None}


class Logout(allauth_views.LogoutView):
    """GET (or, from a client, POST): a client asks. POST `action`: the person's answer, `logout` or `stay`."""

    form_class = LogoutForm

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        if not request.POST.get("action"):
            # From a client's page: only a link brings the session's cookie along (SameSite), so we lead to one.
            asked = urlencode({name: request.POST[name] for name in _KEPT if name in request.POST})
            return redirect(f"{reverse('idp:oidc:logout')}?{asked}")
        response = super().post(request, *args, **kwargs)
        return csrf_failure(request) if response.status_code == 403 else response

    def get_context_data(self, **context) -> dict[str, Any]:
        given, account = context["form"].cleaned_data, self.request.user.account
        return {
            **super().get_context_data(**context),
            "client": given["client"],
            "account": account,
            "phone": msisdn.mask(account.phone) if account else None,
            "kept": [(name, context["form"].data.get(name, "")) for name in _KEPT],
        }

    def render_to_response(self, context: dict[str, Any], **kwargs) -> HttpResponse:
        response = super().render_to_response(context, **kwargs)
        return leading_to(response, context["form"].cleaned_data["post_logout_redirect_uri"])

    def _handle(self, form: LogoutForm, op_logout: bool) -> HttpResponse:
        """Who is in has answered, or nobody is."""
        given, login = form.cleaned_data, self.request.user
        client, hint, where = given["client"], given["id_token_hint"], given["post_logout_redirect_uri"]
        if login.is_authenticated:
            # By the client's own word for this person; without a word from it, by the person's to leave.
            ends = (
                hint.get("sub") == get_adapter().get_user_sub(client, login) if client and hint else op_logout
            )
            if client is not None and ends:
                grants.end_agreement(login, client.id)
            if op_logout:
                get_account_adapter().logout(self.request)
        if where is not None:
            if given["state"]:
                where += ("&" if "?" in where else "?") + urlencode({"state": given["state"]})
            # Not Django's redirect, which knows no apps' schemes.
            return HttpResponse(status=302, headers={"Location": where})
        if not op_logout:
            return redirect("home")
        messages.info(self.request, _("You are signed out."))
        return redirect("account_login")
