"""The app's endpoints of passkeys: sign in with one, take one instead of a password after a re-issue. docs/app-api.md.

An app's passkeys are those of the site; which apps may use them is configured (`android_apps`, `apple_apps`).
"""

from typing import Any, ClassVar

from allauth.headless.base.response import AuthenticationResponse, ConflictResponse
from allauth.headless.base.views import AuthenticationStageAPIView
from allauth.headless.constants import Client
from allauth.headless.internal.restkit.response import APIResponse
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from caplai.service.using import Choice
from caplai.signin import webauthn
from caplai.signin.answers import CreationOptions, RequestOptions, SignedIn
from caplai.signin.api import Endpoint, case_ended
from caplai.signin.passkeys import arrive, not_made, not_shown
from caplai.signin.stages import ChoosePasswordStage
from caplai.watch import metrics


class SignIn(Endpoint):
    """GET: what to ask the device for; 200, 404 (not at this address). POST {"credential"}: 200, 400 (not believed),
    409 (somebody is in already).
    """

    http_method_names: ClassVar[list[str]] = ["get", "post"]
    answers: ClassVar = {"GET": RequestOptions, "POST": SignedIn}

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        return given(request, "request_options", webauthn.request_options(request))

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        if request.user.is_authenticated:
            return ConflictResponse(request)
        passkey = webauthn.shown(request, credential(self.data))
        metrics.signins.labels("passkey" if passkey else "passkey_refused").inc()
        if passkey is None:
            return refused(request, not_shown())
        return AuthenticationResponse.from_response(request, arrive(request, passkey))


class TakePasskey(Endpoint, AuthenticationStageAPIView):
    """GET: what to make; 200, 404 (not at this address, or enough). POST {"credential"}: 200 as a sign-in, 400,
    401 (nothing pending), 409 (the case ended).
    """

    stage_class = ChoosePasswordStage
    http_method_names: ClassVar[list[str]] = ["get", "post"]
    answers: ClassVar = {"GET": CreationOptions, "POST": SignedIn}

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        options = webauthn.creation_options(request, self.stage.login.user, here=True)
        return given(request, "creation_options", options)

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        login = self.stage.login.user
        made = webauthn.made(request, login, credential(self.data))
        if made is None or webauthn.is_full(login):
            return refused(request, not_made())
        match self.stage.take_passkey(made, webauthn.name_for(request)):
            case Choice.CHOSEN:
                return self.respond_next_stage()
        return case_ended(request)


def credential(data: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the device answered, as the app's JSON brings it."""
    answer = (data or {}).get("credential")
    return answer if isinstance(answer, dict) else None


def given(request: HttpRequest, name: str, options: dict | None) -> HttpResponse:
    """200 with the options of a ceremony; 404 where there are no passkeys, or enough."""
    return APIResponse(request, data={name: options}) if options else APIResponse(request, status=404)


def refused(request: HttpRequest, message: str) -> HttpResponse:
    """400: it was not believed, for whatever reason."""
    error = {"code": "passkey_refused", "message": message, "param": "credential"}
    return APIResponse(request, status=400, errors=[error])


def asset_links(request: HttpRequest) -> HttpResponse:
    """Which Android apps may use the site's passkeys (Digital Asset Links)."""
    apps = settings.CAPLAI.signin.android_apps
    if not apps:
        raise Http404
    statements = [
        {
            "relation": ["delegate_permission/common.get_login_creds"],
            "target": {
                "namespace": "android_app",
                "package_name": package,
                "sha256_cert_fingerprints": prints,
            },
        }
        for package, prints in apps.items()
    ]
    return JsonResponse(statements, safe=False)


def apple_app_site_association(request: HttpRequest) -> HttpResponse:
    """Which Apple apps may use the site's passkeys (Associated Domains)."""
    apps = settings.CAPLAI.signin.apple_apps
    if not apps:
        raise Http404
    return JsonResponse({"webcredentials": {"apps": apps}})


urlpatterns = [
    path(name, view.as_api_view(client=Client.APP))
    for name, view in {"webauthn/login": SignIn, "choose_passkey": TakePasskey}.items()
]
