"""The citizen's pages: sign in, choose a password, sign out."""

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.login import perform_password_login
from allauth.account.internal.stagekit import clear_login
from allauth.account.mixins import NextRedirectMixin, RedirectAuthenticatedUserMixin
from allauth.account.models import Login as PendingLogin
from allauth.account.stages import LoginStageController
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic.edit import FormView

from caplai.service.using import Choice
from caplai.signin import webauthn
from caplai.signin.adapter import THROTTLED, TRY_AGAIN, put_off
from caplai.signin.forms import ChooseForm, LoginForm
from caplai.signin.stages import ChoosePasswordStage


class _FormPage(FormView):
    """A page with one form. Errors that are not about what was typed have a status of their own."""

    def form_invalid(self, form) -> HttpResponse:
        response = super().form_invalid(form)
        if status := refusal_status(form):
            put_off(self.request, response, status)
        return response


@method_decorator(sensitive_post_parameters("password"), name="dispatch")
class SignIn(RedirectAuthenticatedUserMixin, NextRedirectMixin, _FormPage):
    template_name = "signin/login.html"
    form_class = LoginForm

    def get_form_kwargs(self) -> dict:
        return {**super().get_form_kwargs(), "request": self.request}

    def get_context_data(self, **context) -> dict:
        return super().get_context_data(passkeys=webauthn.site(self.request) is not None, **context)

    def form_valid(self, form: LoginForm) -> HttpResponse:
        login = PendingLogin(user=form.user, redirect_url=self.get_success_url())
        return perform_password_login(
            self.request, {}, login
        )  # what it is given here, it keeps in the session


class InStage:
    """What only a pending sign-in with an issued password may do: `stage` is its. Else, back to the sign-in page."""

    stage: ChoosePasswordStage

    def dispatch(self, request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        if request.user.is_authenticated:
            return redirect("home")
        stage = LoginStageController.enter(request, ChoosePasswordStage.key)
        if stage is None:
            return self.over() if request.method == "POST" else redirect("account_login")
        if request.method != "POST" and not stage.is_resumable(request):
            clear_login(request)
            return self.over()
        self.stage = stage
        return super().dispatch(request, *args, **kwargs)  # type: ignore[misc]

    def over(self) -> HttpResponse:
        messages.error(
            self.request,  # type: ignore[attr-defined]
            _(
                "The time for choosing a password is over, or one was chosen already. Sign in with the password"
                " that you chose; if you chose none, text again for a password."
            ),
        )
        return redirect("account_login")


@method_decorator(sensitive_post_parameters("new_password"), name="dispatch")
class ChoosePassword(InStage, _FormPage):
    template_name = "signin/choose_password.html"
    form_class = ChooseForm

    def get_form_kwargs(self) -> dict:
        return {**super().get_form_kwargs(), "login": self.stage.login.user}

    def get_context_data(self, **context) -> dict:
        login = self.stage.login.user
        passkeys = webauthn.site(self.request) is not None and not webauthn.is_full(login)
        return super().get_context_data(code=login.username, passkeys=passkeys, **context)

    def form_valid(self, form: ChooseForm) -> HttpResponse:
        match self.stage.choose(form.cleaned_data["new_password"]):
            case Choice.CHOSEN:
                response = self.stage.exit()
                messages.success(self.request, _("Your new password is stored. Sign in with it from now on."))
                return response
            case Choice.ENDED:
                return self.over()
            case Choice.SAME_AS_ISSUED:
                form.refuse_issued()
            case Choice.TRY_AGAIN:
                form.refuse_for_now()
        return self.form_invalid(form)


def sign_out(request: HttpRequest) -> HttpResponse:
    """By POST; from a pending choice too. Anything else changes nothing."""
    if request.method != "POST":
        return redirect("home")
    get_adapter().logout(request)
    messages.info(request, _("You are signed out."))
    return redirect("account_login")


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form from an old tab, or from a browser without cookies. `reason` is for developers."""
    return render(request, "signin/old_page.html", status=403)


def refusal_status(form) -> int | None:
    """The HTTP status of a form whose errors say that nothing was looked at: 429, 503, or None."""
    if form.has_error("__all__", THROTTLED):
        return 429
    return 503 if form.has_error("__all__", TRY_AGAIN) else None
