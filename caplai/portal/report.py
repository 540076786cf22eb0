"""Where somebody says "this was not me": by the link of a mail, or by somebody who is signed in. Only a POST acts."""

from datetime import datetime

from allauth.account.adapter import get_adapter
from allauth.mfa.models import Authenticator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods

from caplai.portal.access import owner
from caplai.service import report
from caplai.service.report import BY_MAIL, BY_SESSION
from caplai.signin.backend import rules
from caplai.store.models import Login

_METHODS = require_http_methods(["GET", "HEAD", "POST"])


@_METHODS
@sensitive_variables("token")
def by_link(request: HttpRequest, token: str) -> HttpResponse:
    """The page of a notice's link."""
    link = report.link_of(token, rules().peppers.keys.values())
    if link is None:
        return render(request, "portal/report_over.html", status=404)
    if report.is_held(link.account):
        return render(request, "portal/reported.html")
    if request.method == "POST":
        report.report(link.account, BY_MAIL, link.case_id, end_the_rest)
        return _done(request, link.account)
    return render(request, "portal/report.html", {"end": link.account[-4:], "at": link.at})


@_METHODS
@owner
def signed_in(request: HttpRequest) -> HttpResponse:
    """The page of somebody who is signed in and saw what was not them."""
    code = request.user.account_id
    if request.method == "POST":
        report.report(code, BY_SESSION, None, end_the_rest)
        return _done(request, code)
    return render(request, "portal/report.html", {"end": code[-4:], "signed_in": True})


def end_the_rest(login: Login, after: datetime | None) -> None:
    """End what opens an account and is in tables of others: its passkeys that were made after that, or all."""
    made = Authenticator.objects.filter(user=login)
    (made.filter(created_at__gt=after) if after else made).delete()


def _done(request: HttpRequest, code: str) -> HttpResponse:
    if request.user.is_authenticated and request.user.account_id == code:
        get_adapter().logout(request)
    return render(request, "portal/reported.html")
