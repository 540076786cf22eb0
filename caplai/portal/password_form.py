"""The form that changes a password, of page and app alike, and what becomes of it."""

from allauth.account.internal.flows.reauthentication import reauthenticate_by_password
from django.contrib.auth import update_session_auth_hash
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from caplai.service import changing
from caplai.service.changing import Change
from caplai.signin.adapter import throttled
from caplai.signin.backend import device_token, rules
from caplai.signin.forms import ChooseForm, PasswordField
from caplai.signin.middleware import network


class ChangeForm(ChooseForm):
    """{"current_password": …, "new_password": …}; the first only where the login has a password."""

    current_password = PasswordField(
        label=_("Your current password"),
        help_text=_("The one you signed in with"),
        autocomplete="current-password",
        required_message=_("Enter your current password."),
    )
    field_order = ("current_password", "new_password")

    def __init__(self, *args, login, **kwargs) -> None:
        super().__init__(*args, login=login, **kwargs)
        if not login.has_usable_password():
            del self.fields["current_password"]

    def change(self, request: HttpRequest) -> Change:
        """Change the password of who asks. What was refused stands in the form, but for ENDED: then nobody is in."""
        current = self.cleaned_data.get("current_password")

        def bind() -> None:
            update_session_auth_hash(request, self.login)
            if current is not None:
                reauthenticate_by_password(request)
            request.session.save()

        changed = changing.change(
            self.login,
            current,
            self.cleaned_data["new_password"],
            here=request.session.row_key,
            device=device_token(request),
            network=network(request),
            rules=rules(),
            also=bind,
        )
        match changed.change:
            case Change.WRONG:
                message = _("This is not your current password.")
                self.add_error("current_password", ValidationError(message, "password_is_wrong"))
            case Change.ISSUED:
                message = _(
                    "This is the password from the message. Sign out, and sign in with it: then you set a new one."
                )
                self.add_error("current_password", ValidationError(message, "password_is_issued"))
            case Change.THROTTLED:
                request.checked = changed  # when to try again, for put_off
                assert changed.retry_at is not None
                self.add_error(None, throttled(changed.retry_at))
            case Change.TRY_AGAIN:
                self.refuse_for_now()
        return changed.change
