"""What people type: a name and a password, and the password that they choose. For the pages and for the app."""

import unicodedata

from allauth.account.adapter import get_adapter
from allauth.headless.account.inputs import LoginInput as AllauthLoginInput
from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from caplai.domain.grammar import code_of
from caplai.signin.known import is_common, is_made_of, is_made_of_number
from caplai.store.models import Login

MIN_LENGTH, MAX_LENGTH = 8, 128
# Of what is typed, before its accents are put together: a letter has two at most.
_MAX_TYPED = 3 * MAX_LENGTH
_MAX_NAME = 150
NO_NULLS = {"null_characters_not_allowed": _("There is a character that cannot be used. Type it again.")}


def normal_username(typed: str) -> str:
    """A code as ten ASCII digits, however it was typed or copied from a card; any other name as it is."""
    return code_of(typed) or typed.strip().encode("utf-8", "ignore").decode()


class UsernameField(forms.CharField):
    def __init__(self, **options) -> None:
        super().__init__(
            max_length=_MAX_NAME,
            error_messages={
                **NO_NULLS,
                "required": _("Enter the code."),
                "max_length": _("This is too long for a code."),
            },
            **options,
        )

    def clean(self, value) -> str:
        return normal_username(super().clean(value))


class ReadableInput(forms.PasswordInput):
    """Shows what is typed, for a typo in a new password costs another SMS. caplai.js hides it and adds a box."""

    input_type = "text"


class PasswordField(forms.CharField):
    """Any characters, spaces at its ends too."""

    def __init__(self, *, autocomplete: str, required_message, widget=forms.PasswordInput, **options) -> None:
        attributes = {"autocomplete": autocomplete, "autocapitalize": "none", "spellcheck": "false"}
        super().__init__(
            strip=False,
            max_length=_MAX_TYPED,
            widget=widget(attrs=attributes),
            error_messages={
                **NO_NULLS,
                "required": required_message,
                "max_length": _("This is too long for a password."),
            },
            **options,
        )


class RememberField(forms.BooleanField):
    """Whether the device is remembered: a known one has guesses of its own, so strangers' never stop its owner."""

    def __init__(self) -> None:
        super().__init__(
            label=_("Remember this device"),
            help_text=_("On a shared computer, untick this."),
            required=False,
            initial=True,
        )


class LoginForm(forms.Form):
    """The sign-in page. After `is_valid`, `user` is the login, to be led through allauth's stages."""

    username = UsernameField(
        label=_("Social insurance code"),
        help_text=_("10 digits; on the health insurance card, the last 10"),
        # `webauthn`: browsers offer passkeys among what they fill in here.
        # No numeric keyboard: it hides the letters of the card's number and of operators' names.
        widget=forms.TextInput(
            attrs={"autocomplete": "username webauthn", "autocapitalize": "none", "spellcheck": "false"}
        ),
    )
    password = PasswordField(
        label=_("Password"),
        help_text=_("The one you set, or the one from the message"),
        autocomplete="current-password",
        required_message=_("Enter the password."),
    )
    remember = RememberField()
    user: Login | None = None

    def __init__(self, *args, request=None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.request = request

    def clean(self) -> dict:
        given = super().clean() or {}
        if not self.errors:
            adapter = get_adapter()
            self.user = adapter.authenticate(
                self.request, username=given["username"], password=given["password"]
            )
            if self.user is None:
                self.add_error("password", adapter.validation_error("username_password_mismatch"))
        return given


class LoginInput(AllauthLoginInput):
    """The app's: {"username": …, "password": …}."""

    username = UsernameField()
    password = PasswordField(autocomplete="off", required_message=_("Enter the password."))


class ChooseForm(forms.Form):
    """The password of one's own, of page and app: {"new_password": …}. `login`: who chooses."""

    new_password = PasswordField(
        label=_("New password"),
        help_text=_(
            "8 characters or more. Letters, accents, digits, signs and spaces are all fine; a few words are easy"
            " to remember."
        ),
        autocomplete="new-password",
        widget=ReadableInput,
        required_message=_("Enter a new password."),
    )

    def __init__(self, *args, login: Login, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.login = login

    def clean_new_password(self) -> str:
        """Eight characters or more, and nothing that a stranger would try first (NIST SP 800-63B, 3.1.1.2)."""
        password = unicodedata.normalize("NFC", self.cleaned_data["new_password"])
        if len(password) < MIN_LENGTH:
            raise ValidationError(_("The password must have 8 characters or more."), "password_too_short")
        if len(password) > MAX_LENGTH:
            raise ValidationError(_("This is too long for a password."), "password_too_long")
        if is_common(password):
            raise ValidationError(
                _("Many people use this password, so it is easy to guess. Choose another."),
                "password_too_common",
            )
        code, phone = self.login.username, self._phone()
        if normal_username(password) == code or is_made_of_number(password, code):
            raise ValidationError(_("The password must not be made of your code."), "password_is_code")
        if is_made_of(password, settings.CAPLAI.signin.obvious_words) or (
            phone is not None and any(is_made_of_number(password, form) for form in _written(phone))
        ):
            raise ValidationError(
                _("This password is made of the service's name or of your phone number. Choose another."),
                "password_is_obvious",
            )
        return password

    def _phone(self) -> str | None:
        return self.login.account.phone if self.login.account else None

    def refuse_issued(self) -> None:
        """Say that it is the issued password, which only the transaction that stores it could see."""
        error = ValidationError(
            _("This is the password from the message. Choose another."), "password_is_issued"
        )
        self.add_error("new_password", error)

    def refuse_for_now(self) -> None:
        """Say that this host cannot decide."""
        self.add_error(None, get_adapter().validation_error("try_again"))


class ChoosePage(ChooseForm):
    """The page's, which asks whether to remember the device where no sign-in page did (`asks`)."""

    remember = RememberField()

    def __init__(self, *args, asks: bool, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not asks:
            del self.fields["remember"]


def _written(phone: str) -> tuple[str, str]:
    """The digits of a phone (E.164), as they are written abroad and at home."""
    return phone.removeprefix("+"), "0" + phone.removeprefix("+84")
