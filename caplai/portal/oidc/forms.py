"""What a person answers to a client's request."""

from typing import Any

from django import forms

from caplai.store.models import Login


class ConsentForm(forms.Form):
    """All that the client asks for, or nothing: half of it would bring people back to where they came from, puzzled."""

    request = forms.CharField(widget=forms.HiddenInput)

    def __init__(self, *args, user: Login, requested_scopes: list[str], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.requested_scopes = requested_scopes

    def clean(self) -> dict[str, Any]:
        return {**(super().clean() or {}), "scopes": self.requested_scopes}
