"""Quên mật khẩu: the pages that lead somebody back in who forgot the password.

The code → how to go on → the one-time code (OTP) → what comes next. Whatever code is typed, known or not, the pages up
to the OTP are the same in words, status and time; what was decided shows only to who typed the right OTP.
The browser keeps the code and a random secret, sealed (signin/kept.py): `service/forgotten.py` has the rest.
"""

import itertools
from dataclasses import asdict, replace
from datetime import datetime

import qrcode
from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.login import perform_password_login
from allauth.account.models import Login as PendingLogin
from allauth.account.stages import LoginStageController
from django import forms
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.module_loading import import_string
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic.edit import FormView

from caplai.domain import otp
from caplai.domain.grammar import CODE_LENGTH, code_of
from caplai.domain.otp import Budgets, Channel, Sending
from caplai.domain.policy import Outcome
from caplai.domain.replies import bind_to_origin, prepare
from caplai.portal.forms import OneTimeInput
from caplai.portal.recover_said import Said, clock, say_decided, say_not_sent, say_over
from caplai.service import forgotten, forgotten_proof
from caplai.service.forgotten import Asked
from caplai.service.forgotten_came import Came
from caplai.service.forgotten_facts import Asker, Rules
from caplai.service.forgotten_proof import Proof, Proved
from caplai.signin import backend
from caplai.signin.adapter import put_off
from caplai.signin.context import how_to_get_a_password
from caplai.signin.forms import NO_NULLS
from caplai.signin.kept import Kept, find, handle
from caplai.signin.middleware import network
from caplai.signin.stages import ISSUED_CASE, PROVED_OTHERWISE, ChoosePasswordStage

_RETRY_SECONDS = 3600
_LONGEST = 200
"""Of what was typed and refused, this much is shown again; no field takes more."""


def rules() -> Rules:
    """The rules as configured. Raises KeyringError."""
    config = settings.CAPLAI
    reissue = import_string(settings.REISSUE_RULES)()
    chosen, texts = config.recover, config.reply_texts
    sender = config.service.brandname or config.service.short_codes[0]

    def wording(template: str) -> str:
        return prepare(
            template,
            keyword=config.service.keyword,
            command=config.service.command,
            short_code=config.service.short_codes[0],
            portal=config.service.portal,
        )

    return Rules(
        reissue=reissue,
        signin=backend.rules(),
        budgets=Budgets(
            code_day=chosen.code_day,
            phone_day=chosen.phone_day,
            network_day=chosen.network_day,
            prefix_hour=chosen.prefix_hour,
            site_hour=chosen.site_hour,
            unverified_least=chosen.unverified_least,
            unverified_percent=chosen.unverified_percent,
            pause=chosen.pause,
            sends=chosen.sends,
        ),
        lifetime=chosen.lifetime,
        mail_lifetime=chosen.mail_lifetime,
        wording=wording(bind_to_origin(texts.otp, config.public_host)),
        granted=wording(texts.issued_web),
        granted_family=wording(texts.issued_web_family),
        sender=sender,
        choose_at_once=chosen.choose_at_once,
    )


def asker(request: HttpRequest) -> Asker:
    return Asker(network(request), backend.device_token(request))


# --- forms, for the pages and for the app ----------------------------------------------------------


class CodeForm(forms.Form):
    """{"code": …}: an insurance code, however it was typed or copied from a card."""

    code = forms.CharField(
        label=_("Social insurance code"),
        help_text=_("10 digits; on the health insurance card, the last 10"),
        max_length=150,
        widget=forms.TextInput(
            attrs={"autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"}
        ),
        error_messages={
            **NO_NULLS,
            "required": _("Enter the code."),
            "max_length": _("This is too long for a code."),
        },
    )

    def clean_code(self) -> str:
        code = code_of(self.cleaned_data["code"])
        if code is None:
            raise ValidationError(
                _("The code has 10 digits. Look at your social insurance book or health insurance card."),
                "bad_code",
            )
        return code


class SendForm(CodeForm):
    """{"code": …, "channel": "sms" or "email"}; SMS unless said."""

    channel = forms.ChoiceField(
        required=False,
        choices=[(each.value, each.value) for each in Channel],
        error_messages={"invalid_choice": _("Choose one of the ways.")},
    )

    def clean_channel(self) -> Channel:
        return Channel(self.cleaned_data["channel"] or Channel.SMS)


class LinkForm(forms.Form):
    """{"token": …}: what stands in the link of an e-mail after its #, where no server sees it."""

    token = forms.CharField(
        label=_("The part after # in the link"),
        help_text=_(
            "Copy it from the email, or type the 6 digits on the page where you asked for the email."
        ),
        max_length=200,
        widget=forms.TextInput(
            attrs={
                "autocomplete": "off",
                "autocapitalize": "none",
                "spellcheck": "false",
                "data-fragment": "",
            }
        ),
        error_messages={
            "required": _("Open the link in the email again."),
            "max_length": _("Open the link in the email again."),
            "null_characters_not_allowed": _("Open the link in the email again."),
        },
    )


class OtpForm(forms.Form):
    """{"otp": …}: spaces, dashes and full-width digits are forgiven."""

    otp = forms.CharField(
        label=_("One-time code"),
        help_text=_("6 digits"),
        max_length=40,
        widget=OneTimeInput,
        error_messages={
            "required": _("Enter the 6 digits from the message."),
            "max_length": _("Enter the 6 digits from the message."),
            "null_characters_not_allowed": _("Enter the 6 digits from the message."),
        },
    )

    def clean_otp(self) -> str:
        """Six digits; what is none is no try, for no code that was sent could be so."""
        digits = otp.normal(self.cleaned_data["otp"])
        if not (len(digits) == otp.DIGITS and digits.isascii() and digits.isdigit()):
            raise ValidationError(_("The code has 6 digits."), "bad_otp")
        return digits

    def refuse(self, found: Proved) -> None:
        """Say what was wrong, where it is worth another try."""
        match found.proof:
            case Proof.WRONG:
                words = _("This is not the one-time code. Tries left: %(count)s.") % {"count": found.tries}
                self.add_error("otp", ValidationError(words, "wrong_otp"))
            case Proof.THROTTLED:
                self.add_error(
                    None,
                    ValidationError(
                        _(
                            "There were too many wrong codes from the network that you are on (maybe by somebody"
                            " else). Try again later."
                        ),
                        "too_many_attempts",
                    ),
                )
            case Proof.TRY_AGAIN:
                self.add_error(
                    None,
                    ValidationError(
                        _("We cannot check this code just now. Try again in a minute."), "try_again"
                    ),
                )


STATUS = {Proof.THROTTLED: 429, Proof.TRY_AGAIN: 503}
"""Of an OTP that was not looked at."""


# --- the pages -------------------------------------------------------------------------------------
# Each POST answers with a redirect, so every page of the way can be gone back to and loaded again: what it needs is in
# the browser's sealed cookie (signin/kept.py), and `r` in an address names one of its requests.


@method_decorator(sensitive_post_parameters("code"), name="dispatch")
class Start(FormView):
    """The code."""

    template_name = "portal/recover.html"
    form_class = CodeForm

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        kept = Kept.of(request)
        form = CodeForm(kept.refusal("code"), initial={"code": kept.code})
        return kept.put(self.render_to_response(self.get_context_data(form=form)))

    def form_valid(self, form: CodeForm) -> HttpResponse:
        kept = Kept.of(self.request)
        kept.type(form.cleaned_data["code"])
        return kept.put(redirect("recover_ways"))

    def form_invalid(self, form: CodeForm) -> HttpResponse:
        kept = Kept.of(self.request)
        kept.refused = {"page": "code", "code": form["code"].value()[:_LONGEST]}
        return kept.put(redirect("recover"))


def ways(request: HttpRequest) -> HttpResponse:
    """How to go on, the same for every code."""
    code = Kept.of(request).code
    if not code:
        return redirect("recover")
    offered = {f"by_{channel}": rules().can_send(channel) for channel in Channel}
    return render(request, "portal/recover_ways.html", {**offered, **text_for(code)})


@sensitive_post_parameters("code")
def send(request: HttpRequest) -> HttpResponse:
    """POST {"code", "channel"}: send an OTP to its phone or its addresses, if there are any."""
    form = SendForm(request.POST)
    if request.method != "POST" or not form.is_valid():
        return redirect("recover")
    code, channel = form.cleaned_data["code"], form.cleaned_data["channel"]
    kept = Kept.of(request)
    asked = forgotten.ask(
        code,
        asker(request),
        secret=kept.secret_for(code, channel),
        others=kept.requests,
        rules=rules(),
        channel=channel,
    )
    kept.type(code)
    if asked.secret is None:
        assert asked.sending is not None
        kept.say("not_sent", asked.sending, asked.retry_at.isoformat() if asked.retry_at else "")
        return kept.put(redirect("recover_said"))
    kept.add(asked.secret)
    if asked.sending is not Sending.SENT:
        _tell_not_sent(request, asked)
    return kept.put(_to("recover_otp", asked.secret))


@method_decorator(sensitive_post_parameters("otp"), name="dispatch")
class Otp(FormView):
    """The OTP. Over: it says so, and lets begin anew."""

    template_name = "portal/recover_otp.html"
    form_class = OtpForm

    def setup(self, request: HttpRequest, *args, **kwargs) -> None:
        super().setup(request, *args, **kwargs)
        self.kept = Kept.of(request)
        self.secret = _named(request, self.kept)

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        standing = forgotten.look(self.secret, rules=rules())
        if self.secret is None or standing is None:
            return redirect("recover")
        if standing.came is not None:
            return _to("recover_done", self.secret)
        if standing.over:
            return _say(request, say_over())
        name = handle(self.secret)
        refused = self.kept.refusal(f"otp {name}")
        form = OtpForm(refused)
        found = Proved(Proof.OVER)
        if refused and form.is_valid():
            found = Proved(Proof(refused["proof"]), tries=standing.tries, retry_at=_time(refused["retry_at"]))
            form.refuse(found)
        context = self.get_context_data(
            form=form,
            standing=standing,
            by_mail=standing.channel is Channel.EMAIL,
            until=clock(standing.expires_at),
            name=name,
        )
        response = self.kept.put(self.render_to_response(context))
        if status := STATUS.get(found.proof):
            request.checked = found
            put_off(request, response, status)
        return response

    def form_valid(self, form: OtpForm) -> HttpResponse:
        found = forgotten_proof.prove(
            self.secret, form.cleaned_data["otp"], asker(self.request), rules=rules()
        )
        if found.proof is Proof.DONE and (response := choose(self.request, found)) is not None:
            return response
        if found.proof in (Proof.DONE, Proof.OVER):  # perhaps proved by the first of two clicks
            return self._on()
        retry_at = found.retry_at.isoformat() if found.retry_at else ""
        return self._refuse(form, proof=found.proof.value, retry_at=retry_at)

    def form_invalid(self, form: OtpForm) -> HttpResponse:
        return self._refuse(form)

    def _refuse(self, form: OtpForm, **why: str) -> HttpResponse:
        if self.secret is not None:
            otp = form["otp"].value()[:_LONGEST]
            self.kept.refused = {"page": f"otp {handle(self.secret)}", "otp": otp, **why}
        return self._on()

    def _on(self) -> HttpResponse:
        """To the page of this request, which says how it stands."""
        if self.secret is None:
            self.kept.say("over")
            return self.kept.put(redirect("recover_said"))
        return self.kept.put(_to("recover_otp", self.secret))


@method_decorator(sensitive_post_parameters("token"), name="dispatch")
class FromLink(FormView):
    """Where the link of an e-mail leads. Opening it does nothing yet: mail programs open links, too."""

    template_name = "portal/recover_link.html"
    form_class = LinkForm

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        kept = Kept.of(request)
        form = LinkForm(kept.refusal("link"))
        return kept.put(self.render_to_response(self.get_context_data(form=form)))

    def form_valid(self, form: LinkForm) -> HttpResponse:
        kept = Kept.of(self.request)
        found = forgotten_proof.prove_link(
            form.cleaned_data["token"], asker(self.request), rules=rules(), kept=kept.requests
        )
        if found.proof is Proof.DONE and (response := choose(self.request, found)) is not None:
            return response
        kept.say("over")
        if found.came is not None:
            until = found.came.until.isoformat() if found.came.until else ""
            kept.say("came", asdict(found.came) | {"until": until})
        return kept.put(redirect("recover_said"))

    def form_invalid(self, form: LinkForm) -> HttpResponse:
        kept = Kept.of(self.request)
        kept.refused = {"page": "link"}
        return kept.put(redirect("recover_link"))


def again(request: HttpRequest) -> HttpResponse:
    """POST: send the OTP again. Too soon: nothing is sent, and the page says when."""
    secret = _named(request, Kept.of(request))
    if secret is None:
        return redirect("recover")
    if request.method != "POST":
        return _to("recover_otp", secret)
    asked = forgotten.again(secret, asker(request), rules=rules())
    if asked.sending not in (Sending.SENT, None):
        _tell_not_sent(request, asked)
    elif asked.sent:
        messages.info(request, _("The same one-time code is sent again, if the code is registered."))
    elif asked.again_at is not None:
        messages.info(request, _("You asked for a code just now. Wait a minute, then send it again."))
    return _to("recover_otp", secret)


def done(request: HttpRequest) -> HttpResponse:
    """What comes next, for the browser that proved the OTP."""
    standing = forgotten.look(_named(request, Kept.of(request)), rules=rules())
    if standing is None or standing.came is None:
        return redirect("home" if request.user.is_authenticated else "recover")
    if standing.came.chooses and LoginStageController.enter(request, ChoosePasswordStage.key) is not None:
        return redirect("choose_password")
    return _say(request, say_decided(standing.came), text_for(standing.came.code))


def said(request: HttpRequest) -> HttpResponse:
    """A page of words, of what was done last in this browser."""
    kept = Kept.of(request)
    match kept.said:
        case ["not_sent", sending, until]:
            text = text_for(kept.code) if kept.code else None
            response = _say(request, say_not_sent(Sending(sending), _time(until)), text, status=429)
            response["Retry-After"] = retry_after(_time(until))
            return response
        case ["came", fields]:
            came = Came(**fields)
            came = replace(came, decided=Outcome(fields["decided"]), until=_time(fields["until"]))
            return _say(request, say_decided(came), text_for(came.code))
        case ["over"]:
            return _say(request, say_over())
    return redirect("recover")


def _named(request: HttpRequest, kept: Kept) -> str | None:
    """The secret of the request that the address names."""
    return find(kept.requests, request.GET.get("r", ""))


def _to(page: str, secret: str) -> HttpResponse:
    return redirect(f"{reverse(page)}?r={handle(secret)}")


def _tell_not_sent(request: HttpRequest, asked: Asked) -> None:
    """Why it is not sent again, on the page where the one that was sent can still be typed."""
    assert asked.sending is not None
    why = say_not_sent(asked.sending, asked.retry_at)
    messages.warning(request, f"{why.title}. {why.text}")


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def choose(request: HttpRequest, found: Proved) -> HttpResponse | None:
    """Where the agency lets a password be chosen on the spot: on to that page. None: it does not.

    Whoever is signed in is signed out: that page is for a pending sign-in only.
    """
    if found.login is None or found.case_id is None:
        return None
    if request.user.is_authenticated:
        get_adapter().logout(request)
    setattr(found.login, ISSUED_CASE, found.case_id)
    setattr(found.login, PROVED_OTHERWISE, True)
    return perform_password_login(request, {}, PendingLogin(user=found.login))


def _say(
    request: HttpRequest, said: Said, text: dict | None = None, *, status: int = 200, **context
) -> HttpResponse:
    """A page of words. `text`: what to text for this code, as a link and a picture; else what to text for any."""
    context |= {"said": said, **(text or {})}
    return render(request, "portal/recover_said.html", context, status=status)


def retry_after(until: datetime | None) -> str:
    """Seconds; where nobody can say, an hour, for that is how long the site's budgets are."""
    return str(max(1, int((until - timezone.now()).total_seconds()))) if until else str(_RETRY_SECONDS)


def text_for(code: str) -> dict:
    """What to text for this code: in words, as a link that writes it, and as a picture of that link for a phone."""
    how = how_to_get_a_password()
    assert len(code) == CODE_LENGTH
    how = {**how, "link": how["link"] + code, "sample": f"{how['text']} {code}"}
    return {"how": how, "code": code, "picture": picture(how["link"])}


def picture(link: str) -> SafeString:
    """A QR code as SVG, within the page: the code of a person is in no address of ours."""
    made = qrcode.QRCode(border=2)  # and the padding of .qr: four in all
    made.add_data(link)
    modules = made.get_matrix()
    path = []
    for y, row in enumerate(modules):
        x = 0
        for dark, run in itertools.groupby(row):
            width = len(list(run))
            if dark:
                path.append(f"M{x} {y}h{width}v1h-{width}z")
            x += width
    return format_html(
        '<svg class="qr" viewBox="0 0 {size} {size}" role="img" aria-label="{says}"><path d="{path}"/></svg>',
        size=len(modules),
        says=_("A picture that writes the message when your phone's camera looks at it"),
        path="".join(path),
    )
