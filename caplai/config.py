"""The one configuration: environment `CAPLAI_*` over `caplai.toml` over the defaults written here.

Every field's description is its documentation: docs/configuration.md is checked against it by a test.
Nested values are named with two underscores (`CAPLAI_SERVICE__KEYWORD`); a list is given as JSON
(`CAPLAI_SERVICE__SHORT_CODES='["8079"]'`). An unknown setting is refused by its name.
"""

import base64
import importlib
import ipaddress
import os
import tomllib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from caplai.channels.aggregators import Aggregator
from caplai.channels.links import Link
from caplai.channels.mailserver import MailServer
from caplai.domain.grammar import Grammar
from caplai.domain.issuing import DIGITS, LETTERS, guessable
from caplai.domain.policy import Limit, Limits
from caplai.domain.replies import Texts
from caplai.smpp.pdu import status_name
from caplai.store.keyfolder import KeyFolder
from caplai.store.keyring import KeyringError, KeyringFile, Keys
from caplai.watch import tracing

PREFIX = "CAPLAI_"
# Read from the environment by the command line itself, before there is a configuration.
NOT_SETTINGS = {"CAPLAI_CONFIG"}
_NO_TIME, _YEAR = timedelta(0), timedelta(days=366)


class ConfigError(Exception):
    """The configuration cannot be used. Its text names each setting and says what is wrong with it."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Service(Section):
    """What citizens text to, and what they are answered."""

    keyword: str = Field("BH", min_length=1, description="The agency's keyword on the short code.")
    command: str = Field(
        "MK", min_length=1, description="The word after the keyword that asks for a password."
    )
    short_codes: list[str] = Field(["8079"], min_length=1, description="The short codes that people text to.")
    other_keywords: list[str] = Field(
        ["VIN", "MKH"],
        description="Keywords of other agencies on a shared short code: their messages get silence.",
    )
    site_name: str = Field(
        "Tài khoản giao dịch điện tử BHXH",
        min_length=1,
        max_length=60,
        description="What the pages, the mails and the passkeys call the site.",
    )
    site_name_en: str = Field(
        "Social insurance online account", min_length=1, max_length=60, description="The same in English."
    )
    portal: str = Field(
        "ung dung VssID, muc Quen mat khau",
        description="Where the free way is, as texts name it (unaccented). Fills `{portal}`.",
    )
    mt_link: str | None = Field(
        None,
        description="The link for messages that answer none, or whose own may not send; none: the first that may.",
    )
    brandname: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9 ._-]{3,11}$",
        description="The sender of messages that answer none, such as one-time codes; none: the first short code.",
    )

    def name_in(self, language: str | None) -> str:
        """The site's name in this language; Vietnamese where it has none of its own."""
        return self.site_name_en if language == "en" else self.site_name


class Password(Section):
    """The password that is issued. These values are frozen into each case when it opens."""

    length: int = Field(6, ge=6, le=32, description="Characters of an issued password.")
    alphabet: str = Field(DIGITS, min_length=10, description="The characters it is drawn from, each once.")
    long_length: int = Field(
        10, ge=8, le=32, description="Its length once strangers have used up an account's guesses."
    )
    long_alphabet: str = Field(
        LETTERS, min_length=10, description="The characters of the long form, without look-alikes."
    )
    lifetime: timedelta = Field(
        timedelta(hours=24), description="How long it lives: ten minutes to 72 hours (`PT24H`, or seconds)."
    )
    texts_per_case: int = Field(5, ge=1, le=20, description="How often one case's password is sent at most.")

    @field_validator("lifetime")
    @classmethod
    def _lifetime_in_range(cls, value: timedelta) -> timedelta:
        if not timedelta(minutes=10) <= value <= timedelta(hours=72):
            raise ValueError("must be between ten minutes and 72 hours")
        return value

    @model_validator(mode="after")
    def _long_is_long(self) -> "Password":
        if guessable(self.long_length, self.long_alphabet):
            raise ValueError("the long form must have 2**38 passwords at least: raise password.long_length")
        return self

    @field_validator("alphabet", "long_alphabet")
    @classmethod
    def _distinct(cls, value: str) -> str:
        if len(set(value)) != len(value):
            raise ValueError("must not hold a character twice")
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("must hold ASCII letters, digits and signs only, and no space")
        return value


class LimitSettings(Section):
    """How often a re-issue is given. A request that joins an open case counts for nothing."""

    account_day: int = Field(
        3, ge=1, description="New cases of one account within 24 hours, by whatever way."
    )
    account_month: int = Field(10, ge=1, description="New cases of one account within 30 days.")
    phone_day: int = Field(5, ge=1, description="New cases of one phone within 24 hours, times its accounts.")
    phone_month: int = Field(
        20, ge=1, description="New cases of one phone within 30 days, times its accounts."
    )
    errors_hour: int = Field(
        5, ge=1, description="Error replies to one phone within an hour; beyond it there is silence."
    )
    web_account_day: int = Field(
        2,
        ge=1,
        description="How many of them page, app and e-mail may open, which are free: they end before the paid message.",
    )
    web_account_month: int = Field(
        6, ge=1, description="Of one account within 30 days, by page, app and e-mail."
    )
    web_phone_day: int = Field(
        4, ge=1, description="Of one phone within 24 hours, by page, app and e-mail, times its accounts."
    )
    web_phone_month: int = Field(
        12, ge=1, description="Of one phone within 30 days, by page, app and e-mail, times its accounts."
    )


class TextSettings(Section):
    """The reply texts: unaccented GSM-7, 160 characters when filled."""

    issued: str = Field(Texts.issued, description="The password. `{code}`, `{password}`, `{until}`.")
    mismatch: str = Field(Texts.mismatch, description="Unknown code, another phone, or not approved.")
    bad_code: str = Field(Texts.bad_code, description="The command without exactly one ten-digit code.")
    bad_syntax: str = Field(Texts.bad_syntax, description="Any other message with the keyword.")
    over_limit: str = Field(Texts.over_limit, description="Over a limit. `{until}`, `{portal}`.")
    held: str = Field(
        Texts.held, description='The account was reported ("this was not me") and waits for the counter.'
    )
    closed: str = Field(Texts.closed, description="The service is closed by the operator. `{portal}`.")
    issued_web: str = Field(
        Texts.issued_web, description="The password, after page or app. `{password}`, `{until}`."
    )
    issued_web_family: str = Field(
        Texts.issued_web_family,
        description="The same to a phone of several accounts. `{code}`, `{password}`, `{until}`.",
    )
    otp: str = Field(
        Texts.otp,
        description="The one-time code. `{otp}`. With `public_url` a last line binds it to the site.",
    )


PackageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]\w*(\.[A-Za-z]\w*)+$")]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^([0-9A-F]{2}:){31}[0-9A-F]{2}$")]
AppleApp = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9]{10}(\.[A-Za-z0-9-]+)+$")]


class SigninSettings(Section):
    """Guesses and throttles at the sign-in (service.md, Guesses)."""

    guesses: int = Field(
        20, ge=1, description="Wrong guesses that unknown devices have together, per account."
    )
    guess_window: timedelta = Field(
        timedelta(hours=72), gt=_NO_TIME, le=_YEAR, description="The time over which guesses count."
    )
    network_failures: int = Field(
        100, ge=1, description="Failed sign-ins of one network (IPv4 address, IPv6 /64) within its window."
    )
    network_window: timedelta = Field(
        timedelta(minutes=10), gt=_NO_TIME, le=_YEAR, description="The window of a network."
    )
    site_failures: int = Field(
        20_000, ge=1, description="Failed sign-ins of the whole site within an hour that raise the alarm."
    )
    site_failures_minute: int = Field(
        3000,
        ge=1,
        description="Failed sign-ins of the whole site within a minute; beyond, only known devices and long passwords.",
    )
    obvious_words: list[str] = Field(
        ["vssid", "bhxh", "bao hiem xa hoi", "bao hiem", "mat khau", "8079"],
        description="Words that a chosen password must not be made of (with digits added or not).",
    )
    android_apps: dict[PackageName, list[Fingerprint]] = Field(
        {},
        description="Android apps that may use the site's passkeys: package → SHA-256 of its certificates (`AB:CD:…`).",
    )
    apple_apps: list[AppleApp] = Field(
        [], description="Apple apps that may use the site's passkeys (`TEAM012345.vn.example.app`)."
    )
    session_age: timedelta = Field(
        timedelta(hours=12), ge=timedelta(seconds=1), le=_YEAR, description="How long a sign-in lasts."
    )
    session_idle: timedelta = Field(
        timedelta(hours=2),
        ge=timedelta(seconds=1),
        le=_YEAR,
        description="How long it lasts while nobody uses it; no longer than `session_age` in any case.",
    )

    @property
    def app_origins(self) -> list[str]:
        """What an Android app calls itself in a passkey's ceremony: the same digest, in base64url."""
        prints = [one for prints in self.android_apps.values() for one in prints]
        digests = [base64.urlsafe_b64encode(bytes.fromhex(one.replace(":", ""))) for one in prints]
        return [f"android:apk-key-hash:{digest.decode().rstrip('=')}" for digest in digests]


class RecoverSettings(Section):
    """ "Quên mật khẩu" by page and app (docs/recover.md). None of these budgets ever closes the short code."""

    lifetime: timedelta = Field(
        timedelta(minutes=5),
        ge=timedelta(minutes=1),
        le=timedelta(minutes=10),
        description="How long a one-time code by SMS lives.",
    )
    mail_lifetime: timedelta = Field(
        timedelta(hours=24),
        ge=timedelta(minutes=10),
        le=timedelta(hours=24),
        description="How long the link and the one-time code of an e-mail live.",
    )
    pause: timedelta = Field(
        timedelta(seconds=60),
        ge=timedelta(seconds=10),
        le=timedelta(minutes=5),
        description="How long after it the same code may be sent again.",
    )
    sends: int = Field(3, ge=1, le=10, description="How often one code is sent at most.")
    code_day: int = Field(
        5,
        ge=1,
        description=(
            "Asked for one insurance code (known or not) by one asker within 24 hours; and sent to one account, by"
            " whomever asked for, beyond which there is silently none. By SMS and by e-mail each."
        ),
    )
    phone_day: int = Field(
        10, ge=1, description="One-time codes sent to one phone within 24 hours; beyond it, silently none."
    )
    network_day: int = Field(
        300, ge=1, description="Asked from one network (IPv4 address, IPv6 /64) within 24 hours."
    )
    prefix_hour: int = Field(1000, ge=1, description="Asked from one IPv4 /24 or IPv6 /48 within an hour.")
    site_hour: int = Field(20_000, ge=1, description="Sent by the whole site within an hour.")
    unverified_least: int = Field(
        500,
        ge=10,
        description="From so many messages in an hour on that a carrier took, the share of codes never typed counts.",
    )
    unverified_percent: int = Field(
        80, ge=10, le=100, description="The share of them, in percent, at which no more are sent."
    )
    choose_at_once: bool = Field(
        False,
        description="After the one-time code a password is chosen on the page, and none is sent by SMS.",
    )


class KeySettings(Section):
    """Where the keys come from, and when new ones become active (docs/keys.md)."""

    lead: timedelta = Field(
        timedelta(minutes=5),
        ge=timedelta(),
        description="A new key becomes active this long after, at the soonest.",
    )
    silence: timedelta = Field(
        timedelta(seconds=45),
        ge=timedelta(seconds=1),
        description="An engine or web server that says nothing for so long has ended; the same on every host.",
    )
    source: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="A source of keys of one's own, such as a KMS: `module:Class`.",
    )
    options: dict[str, str] = Field({}, repr=False, description="What that class is called with.")


class OidcSettings(Section):
    """How long what clients get lives (OpenID Connect, docs/oidc.md). All of it ends with the login's sessions, too."""

    access_lifetime: timedelta = Field(
        timedelta(minutes=10), ge=timedelta(minutes=1), le=timedelta(hours=1), description="An access token."
    )
    refresh_lifetime: timedelta = Field(
        timedelta(days=30),
        ge=timedelta(hours=1),
        le=timedelta(days=365),
        description="Refresh tokens, from the sign-in on; a new one is as old as the one that it replaces.",
    )


class LogSettings(Section):
    """What is logged, to stderr. No line holds a phone, a code or a text."""

    format: Literal["auto", "plain", "json"] = Field(
        "auto", description="`plain`, one `json` object a line, or `auto`: plain at a terminal, else JSON."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is not below it is logged."
    )
    messages: bool = Field(
        True, description="A line for each step of each message, and for each web request (level info)."
    )


class WatchSettings(Section):
    """Probes (`/healthz`, `/readyz`) and `/metrics`, on an address that is not for the internet (docs/metrics.md)."""

    address: str = Field(
        "127.0.0.1", description="The address that an engine and a web server listen on for them."
    )
    engine_port: int = Field(8002, ge=0, le=65535, description="An engine's port for them; 0: none.")
    web_port: int = Field(8003, ge=0, le=65535, description="A web server's port for them; 0: none.")
    traces: str | None = Field(
        None, description="Where OpenTelemetry spans go (OTLP over HTTP); needs `caplai[otel]`."
    )

    @field_validator("traces")
    @classmethod
    def _traceable(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        if value is not None and not tracing.available():
            raise ValueError("OpenTelemetry is not installed: pip install 'caplai[otel]'")
        return value


class RetentionSettings(Section):
    """How long what names a person is kept. Why these values: section "How long data is kept" above."""

    texts: timedelta = Field(
        timedelta(days=90), description="Texts of messages; a message that is still parked then is given up."
    )
    phones: timedelta = Field(
        timedelta(days=180),
        description="Phones of messages, replies and cases, and what else a carrier could match.",
    )
    accounts: timedelta = Field(
        timedelta(days=400),
        description="Whose a case was; figures over a longer period may count a person twice.",
    )
    events: timedelta = Field(timedelta(days=400), description="Events of accounts and of the service.")
    links: timedelta = Field(
        timedelta(days=90),
        description="Binds to carriers, receipts as they came, processes that have ended, e-mails that were sent.",
    )
    every: timedelta = Field(timedelta(hours=1), description="How often an engine looks for what is too old.")
    rate: int = Field(
        1000, ge=1, le=100_000, description="Rows a second that are gone through at most, beside the flow."
    )

    @model_validator(mode="after")
    def _enough(self) -> "RetentionSettings":
        day = timedelta(days=1)
        for name, least, why in (
            ("texts", day, "redeliveries are recognised by them"),
            ("phones", 31 * day, "limits look at 30 days"),
            ("accounts", 31 * day, "limits look at 30 days"),
            ("events", day, "a form that is sent twice is recognised by them"),
            ("links", day, "redeliveries and early receipts are recognised by them"),
            ("every", timedelta(minutes=1), "it is no loop"),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"retention.{name} must be {least} at least: {why}")
        if not self.texts <= self.phones <= self.accounts:
            raise ValueError("a text names its sender: texts must not outlive phones, nor phones accounts")
        if self.events > self.accounts:
            raise ValueError("an event names the case's owner: events must not outlive accounts")
        return self


class Config(BaseSettings):
    """The whole configuration. Sections are tables in caplai.toml; `[[links]]` is a list of them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    data_dir: Path = Field(
        default_factory=lambda: (
            Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "caplai"
        ),
        description="The folder of the embedded database, the keys and the logs.",
    )
    database_url: SecretStr | None = Field(
        None, description="A PostgreSQL 15 or later (`postgresql://…`); none: the embedded server."
    )
    pg_bin: Path | None = Field(
        None, description="The folder of PostgreSQL's programs for the embedded server."
    )
    port: int = Field(8000, ge=0, le=65535, description="The web server's port; 0: any free one.")
    address: str = Field("127.0.0.1", description="The address that the web server listens on.")
    public_url: str | None = Field(
        None, description="How people reach the site; with https, HTTPS is enforced and cookies are secure."
    )
    hsts_subdomains: bool = Field(
        False,
        description="Whether browsers shall insist on HTTPS (HSTS) for all names below that of `public_url`, too: only"
        " where every one of them has it.",
    )
    trusted_proxies: list[str] = Field(
        [], description="Networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed."
    )
    engines: int = Field(
        1,
        ge=1,
        le=8,
        description="Engines that `caplai up` runs. Each keeps one core busy at most; the probes of the second are at"
        " ten ports above `watch.engine_port`, and so on.",
    )
    engine_workers: int = Field(2, ge=1, le=32, description="Threads of the engine that decide messages.")
    web_threads: int = Field(8, ge=1, le=128, description="Threads of the web server.")
    keyring: Path | None = Field(
        None,
        description="The keyring: a file, or a folder with a file for each key; none: `keyring.json` in the data"
        " folder.",
    )
    debuggable: bool = Field(
        False, description="Let core dumps and debuggers of our user read the memory, in which keys are."
    )
    keys: KeySettings = Field(default_factory=KeySettings)
    service: Service = Field(default_factory=Service)
    password: Password = Field(default_factory=Password)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    texts: TextSettings = Field(default_factory=TextSettings)
    signin: SigninSettings = Field(default_factory=SigninSettings)
    recover: RecoverSettings = Field(default_factory=RecoverSettings)
    oidc: OidcSettings = Field(default_factory=OidcSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    watch: WatchSettings = Field(default_factory=WatchSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    mail: MailServer = Field(default_factory=MailServer)
    links: list[Link] = Field([], description="The links to the carriers, each a `[[links]]` table.")
    aggregators: list[Aggregator] = Field(
        [], description="Those who bring messages by HTTP, each an `[[aggregators]]` table."
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for item in value:
            ipaddress.ip_network(item, strict=False)
        return value

    @field_validator("database_url")
    @classmethod
    def _conninfo(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            known = value is None or bool(conninfo_to_dict(value.get_secret_value()))
        except psycopg.Error:
            known = False
        if not known:  # without a word of it: it holds a password
            raise ValueError("must be a URL such as postgresql://user:password@host/database")
        return value

    @field_validator("public_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/") if value else value

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        names = [link.name for link in self.links] + [aggregator.name for aggregator in self.aggregators]
        if len(set(names)) != len(names):
            raise ValueError("links: two of them (or of the aggregators) have the same name")
        ports = [self.watch.engine_port + 10 * number for number in range(self.engines)]
        if self.watch.engine_port and (ports[-1] > 65535 or self.watch.web_port in ports):
            raise ValueError(
                "watch.engine_port: choose another, so that each of the engines has a port of its own"
            )
        if self.service.mt_link is not None and self.service.mt_link not in names:
            raise ValueError(f"service.mt_link names no link: {self.service.mt_link}")
        try:
            self.grammar  # noqa: B018 - it refuses words that no text could match
        except ValueError as error:
            raise ValueError(f"service: {error}") from None
        longest = max(self.password.length, self.password.long_length)
        problems = self.reply_texts.check(
            keyword=self.service.keyword,
            command=self.service.command,
            short_code=max(self.service.short_codes, key=len),
            portal=self.service.portal,
            password_length=longest,
            host=self.public_host,
        )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def senders(self) -> list[str]:
        """The names of the links and aggregators that messages can be sent by, links first."""
        links = [link.name for link in self.links if "mt" in link.use]
        return links + [aggregator.name for aggregator in self.aggregators if aggregator.send]

    @property
    def site_url(self) -> str:
        """How people reach the pages, without a slash at its end."""
        # Browsers have passkeys for names only; the demo says localhost, too.
        host = "localhost" if self.address == "127.0.0.1" else self.address
        return self.public_url or f"http://{host}:{self.port}"

    @property
    def public_host(self) -> str:
        """The host of `public_url`, without a port; empty where there is none."""
        return urlsplit(self.public_url or "").hostname or ""

    @property
    def keyring_file(self) -> Path:
        return self.keyring or self.data_dir / "keyring.json"

    def open_keyring(self) -> Keys:
        """The source of the keys. Raises ConfigError for one of the site's own that cannot be loaded."""
        if self.keys.source is not None:
            module, _, name = self.keys.source.partition(":")
            try:
                keys = getattr(importlib.import_module(module), name)(**self.keys.options)
            except KeyringError:
                raise
            except Exception as error:  # of its text nothing: it may hold a secret
                raise ConfigError(
                    f"keys.source: {self.keys.source} fails with {type(error).__name__}"
                ) from None
            if not isinstance(keys, Keys):
                raise ConfigError(f"keys.source: {self.keys.source} is no caplai.store.keyring.Keys")
            return keys
        return KeyFolder(self.keyring_file) if self.keyring_file.is_dir() else KeyringFile(self.keyring_file)

    def answer_said(self, link: str, status: int | None) -> str:
        """The name of the last answer to a message that was sent by `link`: a command_status, or an aggregator's
        HTTP status.
        """
        if status is None:
            return "no answer"
        over_http = any(link == aggregator.name for aggregator in self.aggregators)
        return f"HTTP {status}" if over_http else status_name(status)

    @property
    def reply_texts(self) -> Texts:
        return Texts(**self.texts.model_dump())

    @property
    def grammar(self) -> Grammar:
        return Grammar(
            keyword=self.service.keyword,
            command=self.service.command,
            short_codes=tuple(self.service.short_codes),
            other_keywords=tuple(self.service.other_keywords),
        )

    @property
    def policy_limits(self) -> Limits:
        day, month = timedelta(days=1), timedelta(days=30)
        return Limits(
            account=(Limit(self.limits.account_day, day), Limit(self.limits.account_month, month)),
            phone=(Limit(self.limits.phone_day, day), Limit(self.limits.phone_month, month)),
            errors=Limit(self.limits.errors_hour, timedelta(hours=1)),
            texts_per_case=self.password.texts_per_case,
        )

    @property
    def web_limits(self) -> Limits:
        """The limits of what page, app and e-mail give for nothing: all those of policy_limits, and what is theirs."""
        day, month = timedelta(days=1), timedelta(days=30)
        return replace(
            self.policy_limits,
            free_account=(
                Limit(self.limits.web_account_day, day),
                Limit(self.limits.web_account_month, month),
            ),
            free_phone=(Limit(self.limits.web_phone_day, day), Limit(self.limits.web_phone_month, month)),
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # What load() passes in is the file, so the environment goes over it.
        return env_settings, init_settings


def load(file: Path | str | None = None) -> Config:
    """The configuration from `file` (or CAPLAI_CONFIG, or caplai.toml here if there is one).

    Raises ConfigError, whose text is for people: it names each setting that is unknown or wrong.
    """
    explicit = file or os.environ.get("CAPLAI_CONFIG")
    path = Path(explicit) if explicit else Path("caplai.toml")
    values: dict[str, Any] = {}
    if explicit or path.exists():
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(
                f"cannot read {path}: {error.strerror}. Name another with --config FILE."
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from None
        except RecursionError:
            raise ConfigError(f"{path} nests its lists too deeply.") from None
    unknown = sorted(set(_unknown_variables()))
    if unknown:
        raise ConfigError(
            "\n".join(f"{name}: there is no such setting (docs/configuration.md)" for name in unknown)
        )
    try:
        return Config(**values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_sentence(item, path if values else None) for item in error.errors())
        ) from None
    except ValueError as error:  # pydantic-settings: a list or table in the environment that is no JSON
        raise ConfigError(f"the environment: {error}") from None


def _unknown_variables() -> list[str]:
    known = {PREFIX + name.upper() for name in Config.model_fields}
    names = [name for name in os.environ if name.startswith(PREFIX) and name not in NOT_SETTINGS]
    return [name for name in names if name.split("__")[0] not in known]


def _sentence(item: Any, path: Path | None) -> str:
    name = ".".join(str(part) for part in item["loc"]) or "configuration"
    if item["type"] == "extra_forbidden":
        where = f" ({path} or the environment)" if path else ""
        return f"{name}: there is no such setting{where}; see docs/configuration.md"
    return f"{name}: {item['msg'].removeprefix('Value error, ')}"
