"""Where a password is checked: the one place, for the pages and the app alike.

An agency whose people sign in with an identity provider of its own replaces this backend.
"""

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.db.models import Q
from django.http import HttpRequest

from caplai.service import credentials
from caplai.service.credentials import Checked, Outcome, Rules
from caplai.signin.middleware import network
from caplai.store.keyring import KeyringError
from caplai.store.models import Account, Login
from caplai.watch import metrics

DEVICE_COOKIE = settings.DEVICE_COOKIE_NAME
DEVICE_HEADER = "X-Device-Token"
REMEMBERS = "remembers_device"
"""The attribute of a request that says whether the device is to be remembered when its sign-in is completed."""

for _outcome in Outcome:  # a rise from nothing to one is seen only if there was a zero
    metrics.signins.labels(_outcome.value)


def rules() -> Rules:
    """The sign-in's rules as configured, with the keys that this host has now."""
    signin = settings.CAPLAI.signin
    return Rules(
        guesses=signin.guesses,
        guess_window=signin.guess_window,
        network_failures=signin.network_failures,
        network_window=signin.network_window,
        site_failures=signin.site_failures,
        site_failures_minute=signin.site_failures_minute,
        issuing=settings.KEYRING.ring("issuing"),
        peppers=settings.KEYRING.ring("pepper"),
        lacks_keys=bool(settings.KEYRING.missing()),
    )


def device_token(request: HttpRequest) -> str | None:
    """The token of the device that asks: an app's header, a browser's cookie."""
    return request.headers.get(DEVICE_HEADER) or request.COOKIES.get(DEVICE_COOKIE)


class PasswordBackend(ModelBackend):
    """Citizens (by their code) and operators (by their name).

    `authenticate` returns a login only for a password that signs in. An issued password does not: that it was
    one stands in `request.checked`, for the adapter, which leads it to the stage where a password is chosen.
    """

    def authenticate(self, request, username=None, password=None, **other) -> Login | None:
        if request is None or username is None or password is None:
            return None
        try:
            now = rules()
        except KeyringError:  # said where keys are looked after (service/presence.py)
            request.checked = Checked(Outcome.TRY_AGAIN)
            metrics.signins.labels(Outcome.TRY_AGAIN.value).inc()
            return None
        request.checked = checked = credentials.check(
            username, password, device=device_token(request), network=network(request), rules=now
        )
        metrics.signins.labels(checked.outcome.value).inc()
        return checked.login if checked.outcome is Outcome.SIGNED_IN else None

    def get_user(self, user_id: int) -> Login | None:
        """Who a session belongs to; nobody once the login is switched off or the account is not approved."""
        may = Q(account__isnull=True) | Q(account__state=Account.State.APPROVED)
        return Login.objects.select_related("account").filter(may, pk=user_id, is_active=True).first()
