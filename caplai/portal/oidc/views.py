"""The provider's endpoints, and its pages: consent, sign in again, and why a client's request cannot be answered."""

import math
from collections.abc import Callable
from datetime import timedelta
from functools import wraps

from allauth.core.internal.httpkit import add_query_params, del_query_params
from allauth.idp.oidc import views as allauth_views
from allauth.idp.oidc.models import Client
from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_safe

from caplai.domain import msisdn
from caplai.portal.oidc.adapter import SCOPES, issuer
from caplai.portal.oidc.forms import ConsentForm
from caplai.portal.oidc.validator import S256, is_older
from caplai.signin.outage import RETRY_SECONDS
from caplai.signin.views import csrf_failure
from caplai.store.keyring import SIGNING, KeyringError

GRANTS = [Client.GrantType.AUTHORIZATION_CODE.value, Client.GrantType.REFRESH_TOKEN.value]
"""The only ones: no password, no client_credentials, no device code; and no implicit flow."""


@require_safe
def configuration(request: HttpRequest) -> JsonResponse:
    """OpenID Connect Discovery 1.0, and RFC 8414: what we offer, and nothing else."""
    base = issuer(request)
    response = JsonResponse(
        {
            "issuer": base,
            "authorization_endpoint": base + reverse("idp:oidc:authorization"),
            "token_endpoint": base + reverse("idp:oidc:token"),
            "userinfo_endpoint": base + reverse("idp:oidc:userinfo"),
            "end_session_endpoint": base + reverse("idp:oidc:logout"),
            "jwks_uri": base + reverse("idp:oidc:jwks"),
            "revocation_endpoint": base + reverse("idp:oidc:revoke"),
            "introspection_endpoint": base + reverse("idp:oidc:introspect"),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": GRANTS,
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": [S256],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
            "introspection_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "scopes_supported": list(SCOPES),
            "claims_supported": [
                *("iss", "sub", "aud", "exp", "iat", "auth_time", "nonce"),
                *("email", "email_verified", "phone_number", "phone_number_verified", "bhxh_code"),
            ],
            "prompt_values_supported": ["none", "login", "consent", "select_account"],
            "ui_locales_supported": [language for language, _ in settings.LANGUAGES],
            "request_parameter_supported": False,
            "request_uri_parameter_supported": False,
            "claims_parameter_supported": False,
        }
    )
    response["Access-Control-Allow-Origin"] = "*"
    return response


class Authorize(allauth_views.AuthorizationView):
    """GET (or, from a client, POST): what a client asks for. POST `action`: the person's answer to it."""

    form_class = ConsentForm
    template_name = "oidc/consent.html"

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        try:  # without a key that signs nobody should have to sign in first
            settings.KEYRING.ring(SIGNING)
        except KeyringError:
            return _put_off(render(request, "idp/oidc/error.html", status=503))
        return super().get(request, *args, **kwargs)

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        if "action" not in request.POST:  # a client's; it may have a `request`, as our form does
            return redirect(f"{request.path}?{request.POST.urlencode()}")
        response = super().post(request, *args, **kwargs)
        return csrf_failure(request) if response.status_code == 403 else response

    def _login_required(self, request: HttpRequest) -> HttpResponse | None:
        response = super()._login_required(request)
        if response is not None or not request.user.is_authenticated:
            return response
        if request.user.account_id is None:
            return render(request, "oidc/for_citizens.html", status=403)
        if request.method == "GET" and _is_too_old(request):
            return self._handle_login_prompt(request, request.GET.get("prompt", "").split())
        return None

    def _handle_login_prompt(self, request: HttpRequest, prompts: list[str]) -> HttpResponse:
        if "none" in prompts:  # the two exclude each other; oauthlib says so to the client
            return None
        url = del_query_params(_answered(request, "login"), "max_age")
        if request.user.is_authenticated:
            return render(request, "oidc/again.html", {"next": url})
        return redirect(add_query_params(reverse("account_login"), {REDIRECT_FIELD_NAME: url}))

    def _skip_consent(self) -> HttpResponse:
        """Nobody is asked by the agency's own, unless it wants it: on the page one may use another account."""
        if {"consent", "select_account"} & set(self._request_info.get("prompt", ())):
            return self.render_to_response(self.get_context_data())
        return super()._skip_consent()

    def get_context_data(self, **context) -> dict:
        context = super().get_context_data(**context)
        account = self.request.user.account
        return {
            **context,
            "asks": [SCOPES[scope] for scope in SCOPES if scope in self._scopes],
            "account": account,
            "phone": msisdn.mask(account.phone),
            "days": math.ceil(settings.CAPLAI.oidc.refresh_lifetime / timedelta(days=1)),
            "here": del_query_params(_answered(self.request, "select_account"), "lang"),
        }


def _challenging(post: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Refuse who came with a header as that header's scheme has it (RFC 6749, 5.2); oauthlib always says Bearer."""

    @wraps(post)
    def answer(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        response = post(self, request, *args, **kwargs)
        if response.status_code == 401 and request.headers.get("Authorization", "").lower().startswith(
            "basic "
        ):
            response["WWW-Authenticate"] = 'Basic realm="caplai", charset="UTF-8"'
        return response

    return answer


class Token(allauth_views.TokenView):
    @_challenging
    def post(self, request: HttpRequest) -> HttpResponse:
        if request.POST.get("grant_type") not in GRANTS:
            return JsonResponse({"error": "unsupported_grant_type"}, status=400)
        try:
            with transaction.atomic():
                return super().post(request)
        except KeyringError:
            return _put_off(JsonResponse({"error": "temporarily_unavailable"}, status=503))
        except ValidationError:  # a `resource` (RFC 8707) that is no URI
            return JsonResponse({"error": "invalid_target"}, status=400)


class Introspect(allauth_views.IntrospectView):
    @_challenging
    @transaction.atomic
    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        return super().post(request, *args, **kwargs)


class Revoke(allauth_views.RevokeView):
    @_challenging
    @transaction.atomic
    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        return super().post(request, *args, **kwargs)


def _answered(request: HttpRequest, prompt: str) -> str:
    """The address of this authorization request without this prompt: it must not ask again when people come back."""
    url = request.get_full_path()
    rest = [one for one in request.GET.get("prompt", "").split() if one != prompt]
    url = del_query_params(url, "prompt")
    return add_query_params(url, {"prompt": " ".join(rest)}) if rest else url


def _put_off(response: HttpResponse) -> HttpResponse:
    """A site without clients has no key that signs, and a new one waits: neither is an outage."""
    response["Retry-After"] = str(RETRY_SECONDS)
    response._has_been_logged = True  # Django would log each as an error
    return response


def _is_too_old(request: HttpRequest) -> bool:
    """Whether the sign-in is older than the client takes; a silent request is told so by the validator."""
    return "none" not in request.GET.get("prompt", "").split() and is_older(request)
