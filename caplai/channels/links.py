"""The settings of a link to a carrier, and what its SMSC's answers mean."""

import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from caplai.service.deliver import Verdict
from caplai.smpp.pdu import BindKind, Status, parse_status, status_name


def _error_status(value: object) -> int:
    if not isinstance(value, str | int):
        raise ValueError("must be the name or the number of a command_status")
    status = parse_status(value)
    if status == Status.ESME_ROK:
        raise ValueError("ESME_ROK is no refusal")
    return status


ErrorStatus = Annotated[int, BeforeValidator(_error_status)]
"""A command_status other than ESME_ROK; written as in SMPP 3.4 (`ESME_RTHROTTLED`) or as a number (`0x58`)."""


def _ascii(value: str) -> str:
    if not value.isascii() or "\0" in value:
        raise ValueError("must be ASCII: SMPP knows no other characters here")
    return value


# SMPP 3.4, 5.1.3: what stays refused however often it is sent. A status that is not here, a carrier's own
# included, may pass: the message is tried again, bounded in number and time.
PERMANENT = frozenset(
    {
        Status.ESME_RINVMSGLEN,
        Status.ESME_RINVCMDLEN,
        Status.ESME_RINVCMDID,
        Status.ESME_RINVSRCADR,
        Status.ESME_RINVDSTADR,
        Status.ESME_RINVESMCLASS,
        Status.ESME_RINVSRCTON,
        Status.ESME_RINVSRCNPI,
        Status.ESME_RINVDSTTON,
        Status.ESME_RINVDSTNPI,
        Status.ESME_RX_P_APPN,
        Status.ESME_RX_R_APPN,
    }
)

THROTTLES = frozenset({Status.ESME_RTHROTTLED, Status.ESME_RMSGQFUL})
"""The SMSC wants less: nothing is wrong with the message."""


class Tls(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ca_file: Path | None = Field(None, description="Certificates to trust instead of the system's.")
    verify: bool = Field(True, description="Check the carrier's certificate and name.")


class Link(BaseModel):
    """One configured bind (or a pair of them) to a carrier's SMSC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$", description="Its name in commands, logs and figures."
    )
    host: str = Field(description="The SMSC's host name or address.")
    port: int = Field(2775, ge=1, le=65535, description="The SMSC's port.")
    system_id: str = Field("caplai", max_length=15, description="Our name there (SMPP system_id).")
    password: SecretStr = Field(
        SecretStr(""), description="Our password there; SMPP 3.4 has eight characters."
    )
    system_type: str = Field("", max_length=12, description="SMPP system_type, if the carrier wants one.")
    short_codes: list[str] = Field(["8079"], description="The short codes that arrive by it.")
    bind: Literal["transceiver", "pair"] = Field(
        "transceiver", description="`transceiver`, or `pair`: a transmitter with a receiver."
    )
    use: list[Literal["mo", "mt"]] = Field(
        ["mo", "mt"], min_length=1, description="Which way messages go: `mo` from phones, `mt` to phones."
    )
    binds: int = Field(
        1, ge=1, le=100, description="How many engines may hold the link at a time; the others stand by."
    )
    window: int = Field(50, ge=1, le=1000, description="Messages sent and not yet answered, at most.")
    tps: int = Field(0, ge=0, description="Messages sent a second, at most; 0: no limit.")
    tls: Tls | bool = Field(False, description="TLS: `true`, or a table with `ca_file` and `verify`.")
    sender: str | None = Field(
        None, description="The sender (brandname) of what we send; none: the short code that was texted."
    )
    sender_ton: int | None = Field(
        None, ge=0, le=255, description="TON of the sender; none: 5 (alphanumeric) with letters, else 0."
    )
    sender_npi: int | None = Field(
        None, ge=0, le=255, description="NPI of the sender; none: 0 (unknown) with letters, else 1."
    )
    phone_ton: int = Field(1, ge=0, le=255, description="TON of a phone we send to; 1: international.")
    phone_npi: int = Field(1, ge=0, le=255, description="NPI of a phone we send to; 1: E.164.")
    default_alphabet: Literal["gsm0338", "latin1", "ascii"] = Field(
        "gsm0338", description="What data_coding 0 means on this link."
    )
    receipts: bool = Field(False, description="Ask for delivery receipts; they double the PDUs.")
    enquire_link: float = Field(
        30, gt=0, description="Idle seconds after which we ask whether the peer is there."
    )
    response_timeout: float = Field(
        10, gt=0, le=60, description="Seconds after which an unanswered bind, enquire_link or unbind is lost."
    )
    submit_timeout: float = Field(
        30,
        gt=0,
        le=60,
        description="Seconds after which a message without an answer is sent again, perhaps a second time.",
    )
    try_again_status: ErrorStatus = Field(
        "ESME_RSYSERR",
        validate_default=True,
        description="With what a delivery is refused for now: a status after which this SMSC delivers it again"
        " (`caplai doctor --link NAME` tries it out).",
    )
    temporary_statuses: list[ErrorStatus] = Field(
        [],
        description="Answers to what we send that mean “later”, though SMPP calls them final. Unknown ones do.",
    )
    permanent_statuses: list[ErrorStatus] = Field(
        [], description="Answers to what we send after which the same message is never tried again."
    )

    @field_validator("system_id", "system_type", "sender")
    @classmethod
    def _is_ascii(cls, value: str | None) -> str | None:
        return value if value is None else _ascii(value)

    @field_validator("password")
    @classmethod
    def _password_is_ascii(cls, value: SecretStr) -> SecretStr:
        _ascii(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _one_meaning_each(self) -> "Link":
        both = set(self.temporary_statuses) & set(self.permanent_statuses)
        if both:
            names = ", ".join(status_name(status) for status in sorted(both))
            raise ValueError(f"temporary_statuses and permanent_statuses both name {names}")
        return self

    @property
    def bind_kinds(self) -> list[BindKind]:
        """The binds that make up the link."""
        if self.bind == "transceiver":
            return [BindKind.TRANSCEIVER]
        kinds = {"mo": BindKind.RECEIVER, "mt": BindKind.TRANSMITTER}
        return [kinds[way] for way in ("mo", "mt") if way in self.use]

    def tls_context(self) -> ssl.SSLContext | None:
        """How to speak TLS to the SMSC; None: not at all. Raises OSError for a `ca_file` that cannot be read."""
        if not self.tls:
            return None
        wanted = self.tls if isinstance(self.tls, Tls) else Tls()
        context = ssl.create_default_context(cafile=str(wanted.ca_file) if wanted.ca_file else None)
        if not wanted.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def verdict(self, status: int) -> Verdict:
        """What the SMSC's answer to a submit_sm means for the message."""
        if status == Status.ESME_ROK:
            return Verdict.SENT
        if status in self.permanent_statuses:
            return Verdict.NEVER
        if status in THROTTLES:
            return Verdict.WAIT
        return (
            Verdict.NEVER if status in PERMANENT and status not in self.temporary_statuses else Verdict.AGAIN
        )

    def sender_address(self, short_code: str) -> tuple[int, int, str]:
        """TON, NPI and address that a message comes from (SMPP 3.4, 5.2.5 and 5.2.6)."""
        sender = self.sender or short_code
        letters = not sender.isdigit()
        ton = (5 if letters else 0) if self.sender_ton is None else self.sender_ton
        npi = (0 if letters else 1) if self.sender_npi is None else self.sender_npi
        return ton, npi, sender
