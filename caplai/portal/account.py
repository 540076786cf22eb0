"""My account: what there is, the password, where one is signed in, what happened."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import update_session_auth_hash
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_POST
from django.views.generic.edit import FormView

from caplai.domain import msisdn
from caplai.portal.access import is_fresh, owner
from caplai.portal.forms import ReadForm
from caplai.portal.oidc.grants import agreements, end_granted_from
from caplai.portal.password_form import ChangeForm
from caplai.portal.told import tell
from caplai.service import addressbook, history, mail, sittings
from caplai.service.addresses import confirmed
from caplai.service.changing import Change
from caplai.service.cooling import cooling_until, is_kept
from caplai.service.history import Entry
from caplai.signin.adapter import put_off
from caplai.signin.client import name_of
from caplai.signin.views import refusal_status
from caplai.signin.webauthn import passkeys

_LATEST = 3
"""Sign-ins that the first page shows."""
_READ = "reissues_read"
"""In the session: until when it was read of re-issues."""


def home(request: HttpRequest) -> HttpResponse:
    """The account of who is signed in; for an operator, who has none, just who it is."""
    if not request.user.is_authenticated:
        return redirect("account_login")
    login = request.user
    if login.account is None:
        return render(request, "signin/home.html")
    shown = summary(request)
    pending = addressbook.pending(login.account_id)
    # Whoever has just been given a new password is led on to what spares them the next one.
    asks = shown["until"] and not shown["emails"] and not pending and mail.is_on()
    told = [tell(entry) for entry in shown["unasked"]]
    return render(
        request,
        "portal/account.html",
        {**shown, "unasked": told, "pending": pending, "asks_for_email": asks},
    )


def summary(request: HttpRequest) -> dict[str, Any]:
    """What the first page of an account shows, and the app's."""
    login = request.user
    until = cooling_until(login.account_id)
    keys = [("passkey", passkey.wrap().name, passkey.created_at) for passkey in passkeys(login)]
    addresses = [("email", address.email, address.since) for address in confirmed(login.account_id)]
    return {
        "account": login.account,
        "phone": msisdn.mask(login.account.phone),
        "has_password": login.has_usable_password(),
        "password_set_at": history.password_set_at(login),
        "passkeys": [name for _kind, name, _since in keys],
        "emails": [email for _kind, email, _since in addresses],
        "services": [agreement.client.name for agreement in agreements(login)],
        "signed_in": sum(seat.signed_in for seat in sittings.seats(login, request.session.row_key)),
        "latest": [tell(entry) for entry in history.latest_sign_ins(login, _LATEST)],
        "unasked": unasked(request),
        "until": until,
        "kept": [
            {"kind": kind, "name": name, "since": since}
            for kind, name, since in [*keys, *addresses]
            if is_kept(since, until)
        ],
    }


def unasked(request: HttpRequest) -> list[Entry]:
    """The re-issues that this session has not read of yet, the newest first."""
    read = request.session.get(_READ)
    after = datetime.fromisoformat(read) if read else None
    return history.unasked_reissues(request.user, request.session.row_key, after)


def read_until(request: HttpRequest, at: datetime) -> None:
    """Whoever asks has read of the re-issues until then: this session tells of them no more. The next one does."""
    request.session[_READ] = min(at, timezone.now()).isoformat()


@require_POST
@owner
def read(request: HttpRequest) -> HttpResponse:
    """Put the notice of re-issues away."""
    form = ReadForm(request.POST)
    if form.is_valid():
        read_until(request, form.cleaned_data["until"])
    return redirect("home")


@method_decorator(sensitive_post_parameters("current_password", "new_password"), name="dispatch")
@method_decorator(owner, name="dispatch")
class ChangePassword(FormView):
    template_name = "portal/password.html"
    form_class = ChangeForm

    def dispatch(self, request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        if not request.user.has_usable_password() and not is_fresh(request):
            return render(request, "portal/sign_in_again.html", {"there": request.path}, status=403)
        return super().dispatch(request, *args, **kwargs)

    def get_form_kwargs(self) -> dict:
        return {**super().get_form_kwargs(), "login": self.request.user}

    def form_valid(self, form: ChangeForm) -> HttpResponse:
        match form.change(self.request):
            case Change.CHANGED:
                messages.success(
                    self.request, _("Your new password is saved. All other devices were signed out.")
                )
                return redirect("home")
            case Change.ENDED:
                return redirect("account_login")
        return self.form_invalid(form)

    def form_invalid(self, form) -> HttpResponse:
        response = super().form_invalid(form)
        if status := refusal_status(form):
            put_off(self.request, response, status)
        return response


@owner
def devices(request: HttpRequest) -> HttpResponse:
    """Where one is signed in, and what is remembered."""
    seats = sittings.seats(request.user, request.session.row_key)
    shown = [{"seat": seat, "name": name_of(seat.client)} for seat in seats]
    others = any(not seat.here for seat in seats)
    return render(
        request,
        "portal/devices.html",
        {"seats": shown, "others": others, "services": agreements(request.user)},
    )


@require_POST
@owner
def end_device(request: HttpRequest) -> HttpResponse:
    """Sign out of one of them, and forget it. What is gone already, or never was, needs no word of its own."""
    sign_out_of(request, request.POST.get("seat", ""))
    messages.success(request, _("It is signed out and no longer remembered."))
    return redirect("account_devices")


@require_POST
@owner
def end_others(request: HttpRequest) -> HttpResponse:
    """Sign out everywhere else."""
    if not sign_out_elsewhere(request):
        return redirect("account_login")
    messages.success(request, _("All other devices are signed out."))
    return redirect("account_devices")


def sign_out_of(request: HttpRequest, name: str) -> bool:
    """End one session or remembered device of who asks, and what clients were given there. False: there is none."""
    login = request.user
    return sittings.end(login, name, request.session.row_key, lambda place: end_granted_from(login, place))


def sign_out_elsewhere(request: HttpRequest) -> bool:
    """End all sessions of who asks but this one, which gets another key. False: it has ended, too."""

    def bind() -> None:
        update_session_auth_hash(request, request.user)
        request.session.save()

    return sittings.end_others(request.user, request.session.row_key, bind)


@owner
def happened(request: HttpRequest) -> HttpResponse:
    """What happened to the account, a page of it."""
    page = history.page(request.user, settings.CAPLAI.grammar, moment_of(request.GET.get("before", "")))
    return render(
        request,
        "portal/history.html",
        {
            "told": [tell(entry) for entry in page.entries],
            "older": page.older and microseconds(page.older),
            "newest": "before" not in request.GET,
        },
    )


def microseconds(at: datetime) -> int:
    """A moment for a URL: since 1970."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def moment_of(text: str) -> datetime | None:
    """The moment that `microseconds` wrote; None for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        return None
    return _EPOCH + timedelta(microseconds=int(text))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGITS = 16  # until the year 2286
