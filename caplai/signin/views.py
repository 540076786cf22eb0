"""The citizen's pages: sign in, choose a password, sign out."""

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.login import perform_password_login
from allauth.account.internal.stagekit import clear_login, get_pending_stage
from allauth.account.mixins import NextRedirectMixin
from allauth.account.models import Login as PendingLogin
from allauth.account.stages import LoginStageController
from allauth.account.utils import get_login_redirect_url
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic.edit import FormView

from caplai.service import arriving
from caplai.service.using import Choice
from caplai.signin import webauthn
from caplai.signin.adapter import THROTTLED, TRY_AGAIN, put_off
from caplai.signin.backend import DEVICE_COOKIE, REMEMBERS, device_token
from caplai.signin.forms import ChoosePage, LoginForm
from caplai.signin.kept import Kept, forget
from caplai.signin.stages import ChoosePasswordStage, drop_pending


class _FormPage(FormView):
    """A page with one form. Errors that are not about what was typed have a status of their own."""

    def form_invalid(self, form) -> HttpResponse:
        response = super().form_invalid(form)
        if status := refusal_status(form):
            put_off(self.request, response, status)
        return response


@method_decorator(sensitive_post_parameters("password"), name="dispatch")
class SignIn(NextRedirectMixin, _FormPage):
    """What is typed here counts, and not who was about to choose a password in this browser, or is signed in: families
    share one. Who was choosing is forgotten; who is in stays so until somebody else's password was right.
    """

    template_name = "signin/login.html"
    form_class = LoginForm

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        if request.user.is_authenticated:
            return redirect(get_login_redirect_url(request, self.get_success_url()))
        return super().get(request, *args, **kwargs)

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        drop_pending(request)
        return super().post(request, *args, **kwargs)

    def get_initial(self) -> dict:
        """Who comes from a forgotten password need not type the code again."""
        return {"username": Kept.of(self.request).code}

    def get_form_kwargs(self) -> dict:
        return {**super().get_form_kwargs(), "request": self.request}

    def get_context_data(self, **context) -> dict:
        passkeys = webauthn.site(self.request) is not None
        return super().get_context_data(
            passkeys=passkeys, choosing=self._choosing(), remembers=True, **context
        )

    def _choosing(self) -> str | None:
        """The last digits of the code that this browser is about to choose a password for, if it is."""
        stage = get_pending_stage(self.request)
        return stage.login.user.username[-4:] if stage and stage.is_resumable(self.request) else None

    def form_valid(self, form: LoginForm) -> HttpResponse:
        if self.request.user.is_authenticated:
            get_adapter().logout(self.request)
        setattr(self.request, REMEMBERS, form.cleaned_data["remember"])
        login = PendingLogin(user=form.user, redirect_url=self.get_success_url())
        return perform_password_login(
            self.request, {}, login
        )  # what it is given here, it keeps in the session


class InStage:
    """What only a pending sign-in with an issued password may do: `stage` is its. Else, back to the sign-in page."""

    stage: ChoosePasswordStage

    def dispatch(self, request: HttpRequest, *args, **kwargs) -> HttpResponseBase:
        # The page names its account: that of somebody else may have come to stand in its place, from another tab.
        of = request.POST.get("username")
        if request.user.is_authenticated:
            return self.of_another("home") if of not in (None, request.user.username) else redirect("home")
        stage = LoginStageController.enter(request, ChoosePasswordStage.key)
        if stage is None:
            return self.over() if request.method == "POST" else redirect("account_login")
        if request.method != "POST" and not stage.is_resumable(request):
            clear_login(request)
            return self.over()
        if of not in (None, stage.login.user.username):
            return self.of_another("choose_password")
        self.stage = stage
        return super().dispatch(request, *args, **kwargs)  # type: ignore[misc]

    def of_another(self, there: str) -> HttpResponse:
        words = _("The page you sent was for another account. Its password was not saved.")
        messages.error(self.request, words)  # type: ignore[attr-defined]
        return redirect(there)

    def over(self) -> HttpResponse:
        messages.error(
            self.request,  # type: ignore[attr-defined]
            _(
                "The time for setting a password is over, or one was set already. Sign in with the password that"
                " you set; if you set none, press “Get a new password”."
            ),
        )
        return redirect("account_login")


@method_decorator(sensitive_post_parameters("new_password"), name="dispatch")
class ChoosePassword(InStage, _FormPage):
    template_name = "signin/choose_password.html"
    form_class = ChoosePage

    def get_form_kwargs(self) -> dict:
        asks = self.stage.remembers is None
        return {**super().get_form_kwargs(), "login": self.stage.login.user, "asks": asks}

    def get_context_data(self, **context) -> dict:
        login = self.stage.login.user
        passkeys = webauthn.site(self.request) is not None and not webauthn.is_full(login)
        return super().get_context_data(
            code=login.username,
            passkeys=passkeys,
            typed=self.stage.is_typed,
            remembers=self.stage.remembers,
            **context,
        )

    def form_valid(self, form: ChoosePage) -> HttpResponse:
        if "remember" in form.cleaned_data:
            setattr(self.request, REMEMBERS, form.cleaned_data["remember"])
        match self.stage.choose(form.cleaned_data["new_password"]):
            case Choice.CHOSEN:
                response = self.stage.exit()
                messages.success(self.request, _("Your new password is saved. Sign in with it from now on."))
                return response
            case Choice.ENDED:
                return self.over()
            case Choice.SAME_AS_ISSUED:
                form.refuse_issued()
            case Choice.TRY_AGAIN:
                form.refuse_for_now()
        return self.form_invalid(form)


def sign_out(request: HttpRequest) -> HttpResponse:
    """By POST; with `forget` the device is no longer remembered. From a pending choice, too. Else nothing changes."""
    if request.method != "POST":
        return redirect("home")
    device = device_token(request) if "forget" in request.POST and request.user.is_authenticated else None
    response = redirect("account_login")
    if device and not arriving.forget(request.user, device):
        response.delete_cookie(DEVICE_COOKIE, samesite="Lax")
    get_adapter().logout(request)
    messages.info(
        request,
        _("You are signed out, and this device is no longer remembered.")
        if device
        else _("You are signed out."),
    )
    forget(response)
    return response


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form from an old tab, or from a browser without cookies. `reason` is for developers."""
    return render(request, "signin/old_page.html", status=403)


def refusal_status(form) -> int | None:
    """The HTTP status of a form whose errors say that nothing was looked at: 429, 503, or None."""
    if form.has_error("__all__", THROTTLED):
        return 429
    return 503 if form.has_error("__all__", TRY_AGAIN) else None
