"""What the engine and the web server both need put together: the rules of the re-issue, and who may ask by HTTP."""

import functools
from collections.abc import Callable
from zoneinfo import ZoneInfo

import psycopg
from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse

from caplai.channels import aggregator_in
from caplai.channels.mail import Mailer
from caplai.config import Config
from caplai.domain.policy import ERRORS, Outcome
from caplai.domain.replies import prepare
from caplai.service import addressbook, forgotten_mail, notices, retention  # noqa: F401 - three write mails
from caplai.service.credentials import SITE_WINDOW
from caplai.service.mail import Site
from caplai.service.notices import tell_of_reissues
from caplai.service.requests import Form, Rules
from caplai.store import queues
from caplai.store.keyring import Keys


def reissue_rules(config: Config, keyring: Keys, conn: psycopg.Connection) -> Rules:
    """What the re-issue needs of the configuration; its wordings are interned ahead, so that no batch has to."""
    texts = config.reply_texts
    wordings = {
        (outcome, short_code): prepare(
            getattr(texts, str(outcome)),
            keyword=config.service.keyword,
            command=config.service.command,
            short_code=short_code,
            portal=config.service.portal,
        )
        for outcome in {Outcome.ISSUED, *ERRORS}
        for short_code in config.service.short_codes
    }
    queues.intern(conn, wordings.values())
    password = config.password
    return Rules(
        grammar=config.grammar,
        limits=config.policy_limits,
        form=Form(password.length, password.alphabet),
        long_form=Form(password.long_length, password.long_alphabet),
        lifetime=password.lifetime,
        guesses=config.signin.guesses,
        guess_window=config.signin.guess_window,
        keyring=lambda: keyring.ring("issuing"),
        wordings=wordings,
        short_code=config.service.short_codes[0],
        mt_links=frozenset(config.senders),
        mt_link=config.service.mt_link or next(iter(config.senders), None),
        free_limits=config.web_limits,
    )


def retention_rules(config: Config) -> retention.Keep:
    """What retention needs of the configuration."""
    kept, signin = config.retention, config.signin
    return retention.Keep(
        texts=kept.texts,
        phones=kept.phones,
        accounts=kept.accounts,
        events=kept.events,
        links=kept.links,
        guesses=max(signin.guess_window, signin.network_window, SITE_WINDOW),
        rate=kept.rate,
        zone=ZoneInfo(settings.TIME_ZONE),
    )


@functools.cache
def web_rules() -> Rules:
    """The rules as the web server has them (also by name, in settings.REISSUE_RULES: rooms do not know the wiring)."""
    connection.ensure_connection()
    return reissue_rules(settings.CAPLAI, settings.KEYRING, connection.connection)


def aggregators(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Django middleware: the door for aggregators, in front of all that pages need.

    No session, cookie, CSRF token, language or redirect is theirs, and they may call this host by any name.
    """
    config = settings.CAPLAI
    https = (config.public_url or "").startswith("https://")
    door = aggregator_in.Door(config.aggregators, web_rules, insists_on_https=https)

    def answer(request: HttpRequest) -> HttpResponse:
        theirs = config.aggregators and request.path_info.startswith(aggregator_in.PREFIX)
        return door(request) if theirs else get_response(request)

    return answer


def mailer(config: Config, keyring: Keys) -> Mailer | None:
    """Who sends e-mail from this process; None while mail is off."""
    if config.mail.host is None:
        return None
    site = Site(config.site_url, keyring, config.service.short_codes[0])
    return Mailer(config.mail, site, [tell_of_reissues])


def start_mail() -> None:
    """Send e-mail as long as this process lives (a web server's; docs/mail.md says why)."""
    sender = mailer(settings.CAPLAI, settings.KEYRING)
    if sender is not None:
        sender.start()
