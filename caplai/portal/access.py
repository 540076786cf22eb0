"""Who may see a page of an account: its owner, and for what could shut the owner out, one who signed in lately."""

import functools
import time
from collections.abc import Callable
from datetime import timedelta

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.login import get_authentication_records
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

FRESH = timedelta(minutes=15)
"""How old a sign-in may be for changing what the owner is reached by (OWASP ASVS 5.0, 7.5.1)."""

View = Callable[..., HttpResponseBase]


def owner(view: View) -> View:
    """The view of somebody who is signed in to an account: others are led to the sign-in, operators to their page."""

    @functools.wraps(view)
    def checked(request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        if not request.user.is_authenticated:
            return redirect_to_login(request.get_full_path())
        if request.user.account is None:
            return redirect("home")
        return view(request, *args, **kwargs)

    return checked


def fresh(view: View) -> View:
    """An owner's view, for a sign-in that is fresh; any other is asked to sign in again, and comes back here."""

    @owner
    @functools.wraps(view)
    def checked(request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        if not is_fresh(request):
            return render(request, "portal/sign_in_again.html", {"there": request.path}, status=403)
        return view(request, *args, **kwargs)

    return checked


def is_fresh(request: HttpRequest) -> bool:
    """Whether a password or passkey was proved in this session within FRESH."""
    return time.time() - proved_at(request) < FRESH.total_seconds()


def proved_at(request: HttpRequest) -> float:
    """When a password or passkey was last proved in this session, in seconds since 1970; 0 if nothing says so."""
    # Without the user there are no records: they are of whoever they were made for.
    records = get_authentication_records(request, request.user)
    return max((record.get("at", 0.0) for record in records), default=0.0)


@require_POST
def sign_in_again(request: HttpRequest) -> HttpResponseBase:
    """End this session and lead to the sign-in, and from there to `next`."""
    there = request.POST.get("next", "")
    if not url_has_allowed_host_and_scheme(there, allowed_hosts=None):
        there = "/"
    get_adapter().logout(request)
    return redirect_to_login(there)
