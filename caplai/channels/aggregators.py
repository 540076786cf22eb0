"""The settings of an aggregator, and what the answers of its send URL mean.

An aggregator stands between the carriers and us and speaks HTTP: aggregator_in.py is the door that its requests
come by, aggregator_out.py sends what is due to its send URL.
"""

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from caplai.service.deliver import Verdict

# As they may stand in a path or a query without being encoded (RFC 3986, 2.3).
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]+")
_LEAST_SECRET = {"kannel": 16, "json": 32}


class Send(BaseModel):
    """Where an aggregator takes messages to phones (its send URL)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="Its send URL, such as `http://10.1.2.3:13013/cgi-bin/sendsms`.")
    method: Literal["POST", "GET"] = Field(
        "POST", description="With `GET` (kannel only) the password and the text stand in the URL: avoid it."
    )
    username: str = Field("", description="kannel: our name there.")
    secret: SecretStr = Field(description="kannel: our password there. json: the key of our signature.")
    window: int = Field(10, ge=1, le=200, description="Requests under way at a time, at most.")
    timeout: float = Field(10, gt=0, le=60, description="Seconds after which a request has failed.")

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as https://host/path")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must have no user, password, query or fragment in it: use username and secret")
        return value


class Aggregator(BaseModel):
    """A company that brings people's messages by HTTP (docs/aggregators.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$",
        description="Its name in the URL, commands, logs and figures; no link has the same.",
    )
    short_codes: list[str] = Field(["8079"], min_length=1, description="The short codes that it may bring.")
    format: Literal["kannel", "json"] = Field(
        description="`kannel`: the convention of Kannel's sms-service. `json`: a signed JSON webhook."
    )
    secrets: list[SecretStr] = Field(
        min_length=1,
        description="What it proves itself by; several while one is replaced by another. kannel: 16 characters or more"
        " that need no encoding in a URL. json: 32 or more.",
    )
    networks: list[str] = Field(
        [],
        description="The networks that it may come from, and may use http from where `public_url` is https; none: any.",
    )
    reply: Literal["body", "send"] = Field(
        "body", description="How replies go back: in the `body` of the answer, or by its `send` URL."
    )
    charset: str = Field("utf-8", description="kannel: of texts that come without `charset` and `coding`.")
    max_body: int = Field(16_384, ge=1024, le=1_048_576, description="Octets of a request's body, at most.")
    send: Send | None = Field(None, description="Its send URL: `[aggregators.send]`.")

    @field_validator("networks")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for item in value:
            ipaddress.ip_network(item, strict=False)
        return value

    @field_validator("charset")
    @classmethod
    def _charset(cls, value: str) -> str:
        if charset_codec(value) is None:
            raise ValueError(f"is not known: use one of {', '.join(sorted(CHARSETS))}")
        return value

    @model_validator(mode="after")
    def _can_be_used(self) -> "Aggregator":
        least = _LEAST_SECRET[self.format]
        for secret in self.secrets:  # without a word of it
            if len(secret.get_secret_value()) < least:
                raise ValueError(
                    f"a secret of {self.name} has fewer than {least} characters: anybody could guess it"
                )
            if self.format == "kannel" and not _UNRESERVED.fullmatch(secret.get_secret_value()):
                raise ValueError(
                    f"a secret of {self.name} would need encoding in a URL: use letters, digits and ._~-"
                )
        if self.reply == "send" and self.send is None:
            raise ValueError(f"{self.name} has reply = 'send' and no send URL: add [aggregators.send]")
        if self.send is not None and self.format == "kannel" and not self.send.username:
            raise ValueError(f"send.username of {self.name} is empty: Kannel's sendsms wants one")
        if self.send is not None and self.format == "json" and self.send.method == "GET":
            raise ValueError(f"send.method of {self.name} must be POST: JSON goes in a body")
        return self


CHARSETS = {
    "utf-8": "utf-8",
    "us-ascii": "ascii",
    "iso-8859-1": "iso-8859-1",
    "windows-1252": "windows-1252",
    "windows-1258": "windows-1258",
    "utf-16be": "utf-16-be",
    "utf-16le": "utf-16-le",
    "ucs-2": "utf-16-be",
    "gsm": "gsm",
}
"""The charsets that are read, by their usual names, and Python's name of each (`gsm`: GSM 03.38, unpacked)."""

_ALIASES = {
    "utf8": "utf-8",
    "ascii": "us-ascii",
    "latin1": "iso-8859-1",
    "latin-1": "iso-8859-1",
    "cp1252": "windows-1252",
    "cp1258": "windows-1258",
    "utf-16": "utf-16be",  # without a mark it is big-endian (RFC 2781, 4.3), as SMS is
    "ucs2": "ucs-2",
    "iso-10646-ucs-2": "ucs-2",
    "gsm-7": "gsm",
    "gsm7": "gsm",
    "gsm0338": "gsm",
}


def charset_codec(name: str) -> str | None:
    """Python's name of a charset, `gsm`, or None for one that we do not read."""
    name = name.strip().strip('"').lower().replace("_", "-")
    return CHARSETS.get(_ALIASES.get(name, name))


_TEMPORARY = frozenset({401, 403, 404, 405, 407, 408, 409, 423, 425, 429})
"""Answers of the 4xx kind that say nothing against the message: a repeat may be welcome, or an operator mends it."""


def verdict(status: int) -> Verdict:
    """What the HTTP status of a send URL's answer means for the message.

    A redirect is not followed, for that would carry the secret elsewhere: somebody has to mend the URL meanwhile.
    """
    if 200 <= status < 300:
        return Verdict.SENT
    if 400 <= status < 500 and status not in _TEMPORARY:
        return Verdict.NEVER
    return Verdict.AGAIN
