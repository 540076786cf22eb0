"""The app's endpoints of an account's passkeys: the pages of passkeys.py by the same verbs. docs/app-api.md."""

from typing import ClassVar, NotRequired

from allauth.headless.base.response import UnauthorizedResponse
from allauth.headless.constants import Client
from allauth.headless.internal.restkit.response import APIResponse
from allauth.mfa.models import Authenticator
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import path
from django.utils.translation import gettext as _
from typing_extensions import TypedDict

from caplai.portal import passkeys as pages
from caplai.portal.access import is_fresh
from caplai.portal.api_account import OfOwner
from caplai.portal.forms import NameForm
from caplai.service.cooling import cooling_until, is_kept
from caplai.service.passkeys import Adding, Removing
from caplai.signin import webauthn
from caplai.signin.answers import CreationOptions, Time, shape
from caplai.signin.passkeys import not_made
from caplai.signin.passkeys_api import credential, given, refused


@shape
class ShownPasskey(TypedDict):
    """A passkey."""

    id: int
    name: str
    added_at: Time
    last_used_at: Time | None
    kept_until: NotRequired[Time | None]
    """In the list: after a re-issue, until when it cannot be removed."""


class Guarded(OfOwner):
    """An owner's endpoint, whose `guarded` methods want a fresh sign-in (else 403)."""

    guarded: ClassVar[tuple[str, ...]] = ()

    def handle(self, request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        if request.method in self.guarded and not is_fresh(request):
            message = _("You signed in more than 15 minutes ago. Sign in again.")
            return error(request, 403, "sign_in_again", message)
        return super().handle(request, *args, **kwargs)


class Passkeys(Guarded):
    """GET: the list. POST {"credential"}: add what was made; 200 with it, 400, 401, 403, 409 (there are enough)."""

    http_method_names: ClassVar[list[str]] = ["get", "post"]
    answers: ClassVar = {"GET": list[ShownPasskey], "POST": ShownPasskey}
    guarded = ("POST",)

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        until = cooling_until(request.user.account_id)
        shown = []
        for passkey in webauthn.passkeys(request.user):
            told = _tell(passkey)
            told["kept_until"] = until.isoformat() if until and is_kept(passkey.created_at, until) else None
            shown.append(told)
        return APIResponse(request, data=shown)

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        made = webauthn.made(request, request.user, credential(self.data))
        if made is None:
            return refused(request, not_made())
        match pages.add(request, made, webauthn.name_for(request)):
            case Adding.ADDED:
                return APIResponse(request, data=_tell(webauthn.passkeys(request.user).last()))
            case Adding.TOO_MANY:
                return error(request, 409, "too_many", pages.too_many())
        return UnauthorizedResponse(request)


class Options(Guarded):
    """GET: what to make; 200, 401, 403, 404 (there are no passkeys at this address, or enough)."""

    http_method_names: ClassVar[list[str]] = ["get"]
    answers: ClassVar = {"GET": CreationOptions}
    guarded = ("GET",)

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        return given(request, "creation_options", webauthn.creation_options(request, request.user))


class Passkey(Guarded):
    """PUT {"name"}: rename it; 200, 400. DELETE: remove it; 200, 403, 409 (`kept`, `last_way_in`). Both 401, 404."""

    http_method_names: ClassVar[list[str]] = ["put", "delete"]
    input_class: ClassVar = {"PUT": NameForm}
    answers: ClassVar = {"PUT": ShownPasskey}
    guarded = ("DELETE",)

    def put(self, request: HttpRequest, passkey_id: int, *args, **kwargs) -> HttpResponse:
        if not webauthn.rename(request.user, passkey_id, self.input.cleaned_data["name"]):
            return APIResponse(request, status=404)
        passkey = webauthn.passkeys(request.user).filter(pk=passkey_id).first()
        return APIResponse(request, data=_tell(passkey)) if passkey else APIResponse(request, status=404)

    def delete(self, request: HttpRequest, passkey_id: int, *args, **kwargs) -> HttpResponse:
        match pages.remove(request.user, passkey_id):
            case Removing.REMOVED:
                return APIResponse(request)
            case Removing.UNKNOWN:
                return APIResponse(request, status=404)
            case Removing.KEPT:
                return error(request, 409, "kept", pages.kept(request.user))
            case Removing.LAST:
                return error(request, 409, "last_way_in", pages.last())
        return UnauthorizedResponse(request)


def _tell(passkey: Authenticator) -> ShownPasskey:
    used = passkey.last_used_at
    return {
        "id": passkey.pk,
        "name": passkey.wrap().name,
        "added_at": passkey.created_at.isoformat(),
        "last_used_at": used.isoformat() if used else None,
    }


def error(request: HttpRequest, status: int, code: str, message: str) -> HttpResponse:
    return APIResponse(request, status=status, errors=[{"code": code, "message": message}])


urlpatterns = [
    path(name, view.as_api_view(client=Client.APP))
    for name, view in {"": Passkeys, "/options": Options, "/<int:passkey_id>": Passkey}.items()
]
