"""The mail server that we hand e-mails to, as it is configured."""

import ipaddress
from datetime import timedelta
from email.headerregistry import Address
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator


class MailServer(BaseModel):
    """E-mail by SMTP (docs/mail.md). Without a host nothing is mailed, and pages offer nothing that needs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str | None = Field(None, min_length=1, description="The mail server; none: mail is off.")
    port: int = Field(587, ge=1, le=65535, description="Its port.")
    tls: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="`starttls`, `tls` from the first byte on (port 465), or `none`."
    )
    username: str | None = Field(None, description="The name that we sign in with there; none: without.")
    password: SecretStr | None = Field(None, description="The password of that name.")
    sender: str | None = Field(
        None, description="The address that mails come from, such as `caplai@agency.gov.vn`."
    )
    sender_name: str = Field("caplai", description="The name beside that address.")
    timeout: timedelta = Field(
        timedelta(seconds=10),
        ge=timedelta(seconds=1),
        le=timedelta(minutes=2),
        description="How long an answer of the server is waited for.",
    )

    @model_validator(mode="after")
    def _whole(self) -> "MailServer":
        if self.host is None:
            return self
        if self.sender is None:
            raise ValueError("mail.sender: name the address that mails come from")
        try:
            Address(self.sender_name, addr_spec=self.sender)
        except (ValueError, IndexError):
            raise ValueError("mail.sender: must be an address such as caplai@agency.gov.vn") from None
        if (self.username is None) != (self.password is None):
            raise ValueError("mail.username and mail.password: set both or neither")
        if self.password is not None and self.tls == "none" and not _is_here(self.host):
            raise ValueError("mail.tls: a password does not go to another host in the clear")
        return self


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
