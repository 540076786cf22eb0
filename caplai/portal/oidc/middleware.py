"""Pages of ours behind which a client waits: where their forms may lead, and in which language they are.

FormAction lets a form of ours end at a client: Chromium holds the redirects after a form's POST to `form-action`, too.
The pages that lead to a client are its consent, the sign-in with its stages while an authorization request waits behind
them, and the question whether to sign out. Only on these, only where the request names a client and an address of its,
that one origin is added.
"""

import contextlib
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from allauth.account.internal.stagekit import LOGIN_SESSION_KEY
from allauth.idp.oidc.models import Client
from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import translation

from caplai.signin.middleware import chosen_language

_POLICY = "Content-Security-Policy"
_OURS = "form-action 'self'"


class UiLocales:
    """The first language of a client's `ui_locales` that we have (OpenID Connect Core 1.0, 3.1.2.1), for its request
    and the sign-in before it, unless the person chose one. To stand within what chooses the language.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        language = None if chosen_language(request) else _wished(request)
        if language is None:
            return self.get_response(request)
        with translation.override(language):
            request.LANGUAGE_CODE = language
            response = self.get_response(request)
        response["Content-Language"] = language
        return response


def _wished(request: HttpRequest) -> str | None:
    """In which language the client that waits behind this page would have it."""
    names = ("idp:oidc:authorization", "idp:oidc:logout", "account_login", "choose_password")
    if not request.path.startswith(tuple(map(reverse, names))):
        return None
    if request.path.startswith(reverse("choose_password")):
        request.session.get(LOGIN_SESSION_KEY)  # where it waits then
    clients = tuple(map(reverse, names[:2]))
    known = dict(settings.LANGUAGES)
    for url in _waiting(request):
        if isinstance(url, str) and url.startswith(clients):
            wished = parse_qs(urlsplit(url).query).get("ui_locales", [""])[0].split()
            languages = (tag.lower().partition("-")[0] for tag in wished)
            return next((language for language in languages if language in known), None)
    return None


class FormAction:
    """To stand around what sets the policy."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        is_page = response.get("Content-Type", "").startswith("text/html")
        if is_page and _OURS in (policy := response.get(_POLICY, "")):
            # A body that is too big cannot be read: nothing waits behind its refusal.
            with contextlib.suppress(SuspiciousOperation):
                if source := _destination(request, response):
                    response[_POLICY] = policy.replace(_OURS, f"{_OURS} {source}")
        return response


def leading_to(response: HttpResponse, url: str | None) -> HttpResponse:
    """Let the page's forms lead to this address of a client's, which was compared with what it registered."""
    response.leads_to = url
    return response


def _destination(request: HttpRequest, response: HttpResponse) -> str | None:
    """Where the page's forms may lead beyond us, as a source of a policy; None: nowhere."""
    if url := getattr(response, "leads_to", None):
        return source_of(url)
    authorize = reverse("idp:oidc:authorization")
    for url in _waiting(request):
        if not isinstance(url, str) or not url.startswith(f"{authorize}?"):
            continue
        query = parse_qs(urlsplit(url).query)
        client_id, redirect_uri = query.get("client_id", [""])[0], query.get("redirect_uri", [""])[0]
        client = None if "\0" in client_id else Client.objects.filter(id=client_id).first()
        if client is not None and redirect_uri in client.get_redirect_uris():
            return source_of(redirect_uri)
    return None


def _waiting(request: HttpRequest):
    """The addresses that may wait behind a page: itself, `next`, and that of a sign-in that is under way."""
    yield request.get_full_path()
    yield request.GET.get(REDIRECT_FIELD_NAME)
    yield request.POST.get(REDIRECT_FIELD_NAME)
    session = getattr(request, "session", None)
    if session is not None and session.accessed:
        pending = session.get(LOGIN_SESSION_KEY)
        yield pending.get("redirect_url") if isinstance(pending, dict) else None


def source_of(redirect_uri: str) -> str:
    """The source expression (CSP level 3, 2.3.1) of a redirect URI: its origin, or an app's own scheme."""
    parts = urlsplit(redirect_uri)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else f"{parts.scheme}:"
