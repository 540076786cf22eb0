"""The pages of an account's passkeys: what there is, one more, another name, one less."""

from typing import Any

from allauth.mfa.models import Authenticator
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST
from django.views.generic import View
from django.views.generic.edit import FormView

from caplai.portal.access import fresh, owner
from caplai.portal.forms import NameForm
from caplai.service import passkeys
from caplai.service.cooling import cooling_until, is_kept
from caplai.service.passkeys import Adding, Removing
from caplai.signin import webauthn
from caplai.signin.passkeys import not_made, options
from caplai.store.models import Login


@owner
def shown(request: HttpRequest) -> HttpResponse:
    """The list."""
    until = cooling_until(request.user.account_id)
    there = [
        {"passkey": passkey, "name": passkey.wrap().name, "kept": is_kept(passkey.created_at, until)}
        for passkey in webauthn.passkeys(request.user)
    ]
    return render(
        request,
        "portal/passkeys.html",
        {
            "passkeys": there,
            "until": until,
            "full": len(there) >= passkeys.MOST,
            "most": passkeys.MOST,
            "here": webauthn.site(request) is not None,
        },
    )


@method_decorator(fresh, name="dispatch")
class Add(View):
    """GET: the page; POST: its form with the passkey that was made."""

    http_method_names = ("get", "post")

    def get(self, request: HttpRequest) -> HttpResponse:
        if webauthn.site(request) is None or webauthn.is_full(request.user):
            return redirect("account_passkeys")
        return render(request, "portal/passkey_add.html")

    def post(self, request: HttpRequest) -> HttpResponse:
        answer = webauthn.parsed(request.POST.get("credential", ""))
        credential = webauthn.made(request, request.user, answer)
        if credential is None:
            messages.error(request, not_made())
            return redirect("account_passkey_add")
        match add(request, credential, webauthn.name_for(request)):
            case Adding.ADDED:
                messages.success(request, _("From now on you can sign in with it."))
            case Adding.TOO_MANY:
                messages.error(request, too_many())
        return redirect("account_passkeys")


@require_POST
@fresh
def add_options(request: HttpRequest) -> HttpResponse:
    """What the browser needs to make the passkey, as JSON."""
    return options(webauthn.creation_options(request, request.user))


@method_decorator(owner, name="dispatch")
class Rename(FormView):
    template_name = "portal/passkey_rename.html"
    form_class = NameForm

    def get_initial(self) -> dict:
        return {"name": one(self.request.user, self.kwargs["passkey_id"]).wrap().name}

    def form_valid(self, form: NameForm) -> HttpResponse:
        if not webauthn.rename(self.request.user, self.kwargs["passkey_id"], form.cleaned_data["name"]):
            raise Http404
        return redirect("account_passkeys")


@method_decorator(fresh, name="dispatch")
class Remove(View):
    """GET: asks whether it is meant; POST: removes it."""

    http_method_names = ("get", "post")

    def get(self, request: HttpRequest, passkey_id: int) -> HttpResponse:
        return render(
            request, "portal/passkey_remove.html", {"name": one(request.user, passkey_id).wrap().name}
        )

    def post(self, request: HttpRequest, passkey_id: int) -> HttpResponse:
        match remove(request.user, passkey_id):
            case Removing.REMOVED | Removing.UNKNOWN:  # a form that is sent twice
                messages.success(request, _("It is removed. Nobody can sign in with it any more."))
            case Removing.KEPT:
                messages.error(request, kept(request.user))
            case Removing.LAST:
                messages.error(request, last())
        return redirect("account_passkeys")


def one(login: Login, passkey_id: int) -> Authenticator:
    """The passkey with this id of this login. Raises Http404 if there is none."""
    return get_object_or_404(webauthn.passkeys(login), pk=passkey_id)


def add(request: HttpRequest, credential: dict[str, Any], name: str) -> Adding:
    """Add what `webauthn.made` has seen; for page and app."""
    login = request.user
    return passkeys.add(login, lambda: _made(login), lambda: webauthn.store(login, credential, name))


def remove(login: Login, passkey_id: int) -> Removing:
    """Remove it; for page and app."""
    found = webauthn.passkeys(login).filter(pk=passkey_id)
    return passkeys.remove(login, passkey_id, lambda: _made(login), found.delete)


def too_many() -> str:
    """Why none was added, for people."""
    return _("There are %(most)s already. Remove one first.") % {"most": passkeys.MOST}


def kept(login: Login) -> str:
    """Why it was not removed, for people."""
    until = cooling_until(login.username) or timezone.now()
    return _(
        "For safety it can be removed only after %(time)s, because a new password was issued recently."
    ) % {"time": timezone.localtime(until).strftime("%H:%M %d/%m/%Y")}


def last() -> str:
    """Why it was not removed, for people."""
    return _("It is your only way to sign in. First add another, or set a password.")


def _made(login: Login) -> dict:
    return dict(webauthn.passkeys(login).values_list("pk", "created_at"))
