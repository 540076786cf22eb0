"""What `data` is in the app API's answers. Endpoints name one of these for each of their methods (`answers`), build it
under mypy's eyes, and the OpenAPI document is made of them (portal/openapi.py).
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""With its offset from UTC (RFC 3339)."""

shape = with_config(ConfigDict(use_attribute_docstrings=True))


@shape
class SignInFlow(TypedDict):
    """A way in, or a step of it that waits."""

    id: str
    """`login`, `mfa_login_webauthn`, and `choose_password` while an issued password waits for that."""
    is_pending: NotRequired[bool]
    """It is this session's next step."""


@shape
class Pending(TypedDict):
    """Nobody is signed in."""

    flows: list[SignInFlow]


@shape
class Person(TypedDict):
    """Who is signed in. What is empty is left out."""

    id: int
    username: str
    """The account's code."""
    display: str
    has_usable_password: bool
    phone: NotRequired[str]
    """Masked, as `0327xxx686`."""
    email: NotRequired[str]
    """The one that the agency has."""


@shape
class SignInMethod(TypedDict):
    """By what somebody signed in."""

    method: Literal["password", "mfa"]
    """`mfa`: by a passkey."""
    at: float
    """Seconds since 1970."""
    username: NotRequired[str]
    id: NotRequired[int]
    """Of the passkey."""
    type: NotRequired[Literal["webauthn"]]
    passwordless: NotRequired[bool]
    reauthenticated: NotRequired[bool]
    """It was asked for once more, to change it."""


@shape
class SignedIn(TypedDict):
    """Somebody is."""

    user: Person
    methods: list[SignInMethod]


@shape
class SignInOffers(TypedDict):
    """How one signs in here: always by `username`, the account's code. Nobody signs up by the app."""

    login_methods: list[Literal["username"]]
    is_open_for_signup: Literal[False]
    authentication_method: Literal["username"]
    email_verification_by_code_enabled: bool
    login_by_code_enabled: bool
    password_reset_by_code_enabled: bool
    """Of the library that the app API follows: `auth/recover` is the way here."""


@shape
class PasskeyOffers(TypedDict):
    """What is offered beside a password."""

    supported_types: list[str]
    passkey_login_enabled: bool
    """False where the site's address allows none: then `auth/webauthn/login` is 404, whatever `flows` name."""


@shape
class SiteOffers(TypedDict):
    """What the site offers."""

    account: SignInOffers
    mfa: PasskeyOffers


@shape
class RequestOptions(TypedDict):
    """What to ask the device for."""

    request_options: dict[str, Any]
    """CredentialRequestOptions of WebAuthn as JSON: passed to the device as they are."""


@shape
class CreationOptions(TypedDict):
    """What to have the device make."""

    creation_options: dict[str, Any]
    """CredentialCreationOptions of WebAuthn as JSON: passed to the device as they are."""
