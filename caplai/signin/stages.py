"""The stage between an issued password and a session: choosing a password of one's own, or taking a passkey."""

import secrets
from uuid import UUID

from allauth.account.internal.flows.login import clear_authentication_records, record_authentication
from allauth.account.internal.stagekit import clear_login
from allauth.account.stages import LoginStage
from allauth.core.internal.httpkit import headed_redirect_response
from django.http import HttpRequest

from caplai.service import using
from caplai.service.using import Choice
from caplai.signin import webauthn
from caplai.signin.backend import REMEMBERS, rules
from caplai.watch import metrics

ISSUED_CASE = "issued_case"
"""The attribute of a login (in memory only) that says by which case's password it was proved."""
PROVED_OTHERWISE = "proved_otherwise"
"""Likewise: true where nobody typed that password, but a one-time code or the link of an e-mail proved who it is."""


def drop_pending(request: HttpRequest) -> None:
    """Nobody is about to choose a password in this session any more."""
    if not request.user.is_authenticated:
        clear_login(request)


class ChoosePasswordStage(LoginStage):
    """Pending from the issued password on; only `choose` and `take_passkey` let it be left, while its case is open."""

    key = "choose_password"
    urlname = "choose_password"

    def handle(self):
        case_id = getattr(self.login.user, ISSUED_CASE, None)
        if case_id is not None:
            typed = not getattr(self.login.user, PROVED_OTHERWISE, False)
            self.state.update(case=str(case_id), attempt=secrets.token_hex(8), typed=typed)
            self.state["remembers"] = getattr(self.request, REMEMBERS, None)
            # A session key that somebody planted before must not be worth a pending sign-in.
            self.request.session.cycle_key()
        if "case" not in self.state:
            return None, True
        return headed_redirect_response(self.urlname), True

    def is_resumable(self, request) -> bool:
        """Whether the page is worth showing: the case is still open."""
        return using.is_choosable(self.login.user, UUID(self.state["case"]))

    @property
    def is_typed(self) -> bool:
        """Whether the person typed an issued password to come here."""
        return self.state.get("typed", True)

    @property
    def remembers(self) -> bool | None:
        """Whether the person wants this device to be remembered; None: nobody has asked yet."""
        return self.state.get("remembers")

    def choose(self, password: str) -> Choice:
        """Store the password. CHOSEN: call `exit()` next; ENDED: the pending sign-in is over."""
        case_id, attempt = UUID(self.state["case"]), self.state["attempt"]
        choice = using.choose(self.login.user, case_id, password, attempt=attempt, rules=rules())
        metrics.choices.labels(choice.value).inc()
        return self._told(choice)

    def take_passkey(self, credential: dict, name: str) -> Choice:
        """Store the passkey instead of a password. CHOSEN and ENDED as of `choose`; nothing else comes back."""
        login, state = self.login.user, self.state
        choice = using.take_passkey(
            login,
            UUID(state["case"]),
            lambda: webauthn.store(login, credential, name),
            attempt=state["attempt"],
        )
        metrics.choices.labels("passkey" if choice is Choice.CHOSEN else choice.value).inc()
        return self._told(choice)

    def exit(self):
        """On to the session. To choose is a sign-in of its own, however long it took: what the first page leads to asks
        for a fresh one.
        """
        if self.remembers is not None:
            setattr(self.request, REMEMBERS, self.remembers)
        clear_authentication_records(self.request)
        record_authentication(self.request, self.login.user, method="password")
        return super().exit()

    def _told(self, choice: Choice) -> Choice:
        if choice is Choice.ENDED:
            clear_login(self.request)
        return choice
