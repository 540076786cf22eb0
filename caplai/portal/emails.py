"""The pages of an account's e-mail addresses: what there is, one more, its code, one less."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST
from django.views.generic.edit import FormView

from caplai.portal.access import fresh, owner
from caplai.portal.forms import AddressForm, MailedCodeForm
from caplai.service import addressbook, mail
from caplai.service.addressbook import Adding, Confirming, Removing
from caplai.service.addresses import confirmed
from caplai.service.cooling import cooling_until, is_kept
from caplai.signin.backend import rules


@owner
def addresses(request: HttpRequest) -> HttpResponse:
    """The confirmed addresses, and one that waits for its code."""
    code = request.user.account_id
    until = cooling_until(code)
    shown = [
        {"address": address, "kept": address.id and is_kept(address.since, until)}
        for address in confirmed(code)
    ]
    return render(
        request,
        "portal/addresses.html",
        {"addresses": shown, "until": until, "pending": addressbook.pending(code), "mail": mail.is_on()},
    )


@method_decorator(fresh, name="dispatch")
class Add(FormView):
    template_name = "portal/address_add.html"
    form_class = AddressForm

    def form_valid(self, form: AddressForm) -> HttpResponse:
        adding = addressbook.add(self.request.user, form.cleaned_data["email"])
        if adding is Adding.SENT:
            return redirect("account_email_confirm")
        if adding is Adding.ENDED:
            return redirect("account_email")  # and from there to the sign-in
        form.add_error("email", refusal(adding))
        return self.form_invalid(form)


@method_decorator(owner, name="dispatch")
class Confirm(FormView):
    template_name = "portal/address_confirm.html"
    form_class = MailedCodeForm

    def dispatch(self, request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        self.pending = addressbook.pending(request.user.account_id)
        if self.pending is None:
            return self.over()
        return super().dispatch(request, *args, **kwargs)

    def get_context_data(self, **context) -> dict:
        return super().get_context_data(pending=self.pending, **context)

    def form_valid(self, form: MailedCodeForm) -> HttpResponse:
        peppers = rules().peppers.keys.values()
        match addressbook.confirm(self.request.user, form.cleaned_data["code"], peppers):
            case Confirming.CONFIRMED:
                messages.success(self.request, _("The email address is confirmed."))
                return redirect("account_email")
            case Confirming.ENDED:
                return self.over()
            case Confirming.WRONG:
                form.add_error("code", wrong_code())
        return self.form_invalid(form)

    def over(self) -> HttpResponse:
        messages.error(self.request, code_over())
        return redirect("account_email")


@require_POST
@fresh
def again(request: HttpRequest) -> HttpResponse:
    """Mail the code of the address that waits for it once more."""
    waiting = addressbook.pending(request.user.account_id)
    if waiting is None:
        return redirect("account_email")
    adding = addressbook.add(request.user, waiting.email)
    if adding is Adding.SENT:
        messages.info(request, _("The code was sent again."))
    elif adding is not Adding.ENDED:
        messages.error(request, refusal(adding))
    return redirect("account_email_confirm")


@require_POST
@fresh
def remove(request: HttpRequest, address_id: int) -> HttpResponse:
    match addressbook.remove(request.user, address_id):
        case Removing.REMOVED:
            messages.success(request, _("The email address is removed."))
        case Removing.KEPT:
            messages.error(request, kept(request.user.account_id))
    return redirect("account_email")


def refusal(adding: Adding) -> str:
    """Why an address was not added, for people."""
    return {
        Adding.ALREADY: _("This address is confirmed already."),
        Adding.TOO_MANY: _("There are 5 addresses already. Remove one first."),
        Adding.TOO_OFTEN: _("Too many codes were sent in the last 24 hours. Try again later."),
        Adding.OFF: _("No email can be sent just now."),
    }[adding]


def wrong_code() -> str:
    return _("The code is not right. Look at the newest email.")


def code_over() -> str:
    return _("The code can no longer be used: too many wrong tries, or it is too old. Add the address again.")


def kept(code: str) -> str:
    """Why an address was not removed, for people."""
    until = cooling_until(code) or timezone.now()
    return _(
        "For safety it can be removed only after %(time)s, because a new password was issued recently."
    ) % {"time": timezone.localtime(until).strftime("%H:%M %d/%m/%Y")}
