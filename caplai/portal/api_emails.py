"""The app's endpoints of an account's addresses, and of "this was not me": the pages of emails.py and report.py by the
same verbs. docs/app-api.md.
"""

from typing import ClassVar

from allauth.account.adapter import get_adapter
from allauth.headless.base.response import UnauthorizedResponse
from allauth.headless.constants import Client
from allauth.headless.internal.restkit.inputs import CharField, Input
from allauth.headless.internal.restkit.response import APIResponse
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.translation import gettext as _
from typing_extensions import TypedDict

from caplai.portal import emails as pages
from caplai.portal.api_account import OfOwner
from caplai.portal.api_passkeys import Guarded, error
from caplai.portal.forms import AddressForm, MailedCodeForm
from caplai.portal.report import end_the_rest
from caplai.service import addressbook, mail, report
from caplai.service.addressbook import Adding, Confirming, Removing
from caplai.service.addresses import confirmed
from caplai.service.cooling import cooling_until, is_kept
from caplai.service.report import BY_MAIL, BY_SESSION
from caplai.signin.answers import Time, shape
from caplai.signin.api import Endpoint
from caplai.signin.backend import rules

_STATUS = {Adding.ALREADY: 409, Adding.TOO_MANY: 409, Adding.TOO_OFTEN: 429, Adding.OFF: 409}

_RETRY = {Adding.TOO_OFTEN: 3600}
"""Seconds after which it may be otherwise."""


@shape
class Address(TypedDict):
    """A confirmed address."""

    id: int | None
    """null: the agency's, which only the agency changes."""
    email: str
    since: Time | None
    """null: longer than this service knows."""
    kept_until: Time | None
    """After a re-issue, until when it cannot be removed."""


@shape
class WaitingAddress(TypedDict):
    """An address that a code was sent to."""

    email: str
    tries: int
    """How many are left."""


@shape
class Addresses(TypedDict):
    """Where the account's owner is told things."""

    addresses: list[Address]
    pending: WaitingAddress | None
    can_add: bool
    """Whether this site sends e-mail."""


class Emails(Guarded):
    """GET: the list. POST {"email"}: have a code sent to it (again); 200, 400, 401, 403, 409, 429."""

    http_method_names: ClassVar[list[str]] = ["get", "post"]
    input_class: ClassVar = {"POST": AddressForm}
    answers: ClassVar = {"GET": Addresses, "POST": Addresses}
    guarded = ("POST",)

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        return _listed(request)

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        adding = addressbook.add(request.user, self.input.cleaned_data["email"])
        if adding is Adding.ENDED:
            return UnauthorizedResponse(request)
        if adding is not Adding.SENT:
            response = error(request, _STATUS[adding], adding.value, pages.refusal(adding))
            if seconds := _RETRY.get(adding):
                response["Retry-After"] = str(seconds)
            return response
        return _listed(request)


class Confirm(OfOwner):
    """POST {"code"}: 200 with the list, 400 `wrong_code`, 409 `ended`."""

    http_method_names: ClassVar[list[str]] = ["post"]
    input_class = MailedCodeForm
    answers: ClassVar = {"POST": Addresses}

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        peppers = rules().peppers.keys.values()
        match addressbook.confirm(request.user, self.input.cleaned_data["code"], peppers):
            case Confirming.CONFIRMED:
                return _listed(request)
            case Confirming.WRONG:
                return error(request, 400, "wrong_code", pages.wrong_code())
        return error(request, 409, "ended", pages.code_over())


class Email(Guarded):
    """DELETE: remove it; 200 with the list, 403, 404, 409 `kept`."""

    http_method_names: ClassVar[list[str]] = ["delete"]
    answers: ClassVar = {"DELETE": Addresses}
    guarded = ("DELETE",)

    def delete(self, request: HttpRequest, address_id: int, *args, **kwargs) -> HttpResponse:
        match addressbook.remove(request.user, address_id):
            case Removing.REMOVED:
                return _listed(request)
            case Removing.KEPT:
                return error(request, 409, "kept", pages.kept(request.user.account_id))
            case Removing.ENDED:
                return UnauthorizedResponse(request)
        return APIResponse(request, status=404)


class Report(OfOwner):
    """POST: "this was not me" of who is signed in; 401, for nobody is in any more."""

    http_method_names: ClassVar[list[str]] = ["post"]

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        report.report(request.user.account_id, BY_SESSION, None, end_the_rest)
        get_adapter().logout(request)
        return UnauthorizedResponse(request)


class TokenInput(Input):
    token = CharField(max_length=500)


class ReportByLink(Endpoint):
    """POST {"token"} of a mail's link: 200, or 404 for one that is none or has ended."""

    input_class = TokenInput
    http_method_names: ClassVar[list[str]] = ["post"]

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        link = report.link_of(self.input.cleaned_data["token"], rules().peppers.keys.values())
        if link is None:
            message = _("This link no longer works")
            return error(request, 404, "ended", message)
        report.report(link.account, BY_MAIL, link.case_id, end_the_rest)
        return APIResponse(request)


def _listed(request: HttpRequest) -> HttpResponse:
    code = request.user.account_id
    until, waiting = cooling_until(code), addressbook.pending(code)
    addresses: list[Address] = [
        {
            "id": address.id,
            "email": address.email,
            "since": address.since.isoformat() if address.since else None,
            "kept_until": until.isoformat()
            if until and address.id and is_kept(address.since, until)
            else None,
        }
        for address in confirmed(code)
    ]
    pending: WaitingAddress | None = (
        {"email": waiting.email, "tries": addressbook.TRIES - waiting.tries} if waiting else None
    )
    listed: Addresses = {"addresses": addresses, "pending": pending, "can_add": mail.is_on()}
    return APIResponse(request, data=listed)


urlpatterns = [
    path(name, view.as_api_view(client=Client.APP))
    for name, view in {
        "account/emails": Emails,
        "account/emails/confirm": Confirm,
        "account/emails/<int:address_id>": Email,
        "account/report": Report,
        "report": ReportByLink,
    }.items()
]
