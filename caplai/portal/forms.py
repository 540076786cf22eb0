"""What people send on the portal's pages: an e-mail address, a code from a mail, a passkey's name, a time."""

import contextlib
from datetime import datetime

from django import forms
from django.core.validators import EmailValidator
from django.utils.translation import gettext_lazy as _

from caplai.signin import webauthn
from caplai.signin.forms import NO_NULLS

_MAX_EMAIL = 254  # RFC 5321, 4.5.3.1.3


class OneTimeInput(forms.TextInput):
    """For six digits that were sent: phones offer to fill them in (HTML, autofill `one-time-code`)."""

    def __init__(self) -> None:
        attrs = {
            "autocomplete": "one-time-code",
            "inputmode": "numeric",
            "class": "short",
            "spellcheck": "false",
        }
        super().__init__(attrs)


class AddressForm(forms.Form):
    """{"email": …} of page and app."""

    email = forms.CharField(
        label=_("Email address"),
        help_text=_("For example: lan@gmail.com"),
        max_length=_MAX_EMAIL,
        widget=forms.EmailInput(
            attrs={"autocomplete": "email", "autocapitalize": "none", "spellcheck": "false"}
        ),
        error_messages={
            **NO_NULLS,
            "required": _("Enter an email address."),
            "max_length": _("This is too long for an email address."),
        },
    )

    def clean_email(self) -> str:
        """What a mail server can be told: ASCII, with a name, an @ and a domain; the domain in lower case."""
        name, _at, domain = self.cleaned_data["email"].rpartition("@")
        email = f"{name}@{domain.lower()}"
        wrong = _("An email address looks like this: lan@gmail.com. Check it.")
        if not email.isascii():
            raise forms.ValidationError(wrong, "invalid")
        EmailValidator(message=wrong)(email)
        return email


class MailedCodeForm(forms.Form):
    """{"code": …} of page and app: the six digits of a mail."""

    code = forms.CharField(
        label=_("Code from the email"),
        help_text=_("6 digits"),
        max_length=30,
        widget=OneTimeInput,
        error_messages={
            **NO_NULLS,
            "required": _("Enter the code from the email."),
            "max_length": _("The code has 6 digits."),
        },
    )

    def clean_code(self) -> str:
        digits = "".join(self.cleaned_data["code"].split())
        if not (len(digits) == 6 and digits.isascii() and digits.isdigit()):
            raise forms.ValidationError(_("The code has 6 digits."), "invalid")
        return digits


class NameForm(forms.Form):
    """{"name": …} of page and app: what a passkey is called."""

    name = forms.CharField(
        label=_("Name"),
        help_text=_("For example: Lan's phone"),
        max_length=webauthn.NAME_LENGTH,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
        error_messages={
            **NO_NULLS,
            "required": _("Enter a name."),
            "max_length": _("This is too long for a name."),
        },
    )

    def clean_name(self) -> str:
        # Half a surrogate pair, which JSON may bring, is nothing that can be stored.
        return self.cleaned_data["name"].encode("utf-8", "ignore").decode() or "?"


class ReadForm(forms.Form):
    """{"until": …} of page and app: the time of the newest thing that was read of."""

    until = forms.CharField(max_length=40, error_messages=NO_NULLS)

    def clean_until(self) -> datetime:
        with contextlib.suppress(ValueError):
            at = datetime.fromisoformat(self.cleaned_data["until"])
            if at.tzinfo is not None:
                return at
        raise forms.ValidationError(_("This is not a time."), "invalid")
