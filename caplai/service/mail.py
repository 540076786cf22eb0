"""E-mail: `post` queues one within the transaction of what it tells of; `write` makes its text when it is sent.

A kind of mail is known by its name: whoever has something to tell says with `@kind("…")` how it reads. What is secret
in it (a code, the token of a link) is derived there and then, and stands in no table. Each mail has both languages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import psycopg
from django.conf import settings
from django.db import connection, transaction
from django.db.models.functions import Now
from django.utils import translation

from caplai.domain.letters import Letter, Part, letter
from caplai.store.keyring import Keys
from caplai.store.mails import MAIL_CHANNEL, Due
from caplai.store.models import Mail

LASTING = timedelta(days=3)
"""How long a notice is tried to be brought."""
LANGUAGES = ("vi", "en")


@dataclass(frozen=True, slots=True, repr=False)
class Site:
    """What texts need that no row has."""

    url: str
    """How people reach the pages, without a slash at its end."""
    keys: Keys
    short_code: str
    conn: psycopg.Connection | None = None
    """The sender's, for what a mail is about."""


Write = Callable[[Due, Site], Part | None]
"""The text of a mail in the language that is active; None where it has become moot."""

KINDS: dict[str, Write] = {}


def kind(name: str) -> Callable[[Write], Write]:
    """Register who writes the mails of this kind. The name stands in rows and metrics."""

    def register(write: Write) -> Write:
        assert name not in KINDS, f"two kinds of mail are called {name}"
        KINDS[name] = write
        return write

    return register


def site_name() -> str:
    """What the site is called, in the language that is active."""
    return settings.CAPLAI.service.name_in(translation.get_language())


def is_on() -> bool:
    """Whether a mail server is configured: else nothing is posted, and nothing that needs it is offered."""
    return settings.CAPLAI.mail.host is not None


def post(
    name: str,
    account: str,
    address_id: int | None = None,
    *,
    about: UUID | None = None,
    language: str | None = None,
    lasting: timedelta = LASTING,
    urgent: bool = False,
) -> UUID | None:
    """Queue a mail of this kind, in the caller's transaction; returns its random name, None while mail is off.

    `address_id`: a row of `address`; None: the address that the agency's registry has. `about`: what the kind is about.
    `language`: which one stands first (the active one unless said). `lasting`: it is of no use later. `urgent`:
    somebody waits for it before a page.
    """
    assert name in KINDS, f"nobody writes mails of the kind {name}"
    if not is_on():
        return None
    first = language or translation.get_language() or ""
    with transaction.atomic():
        mail = Mail.objects.create(
            kind=name,
            account=account,
            address_id=address_id,
            about=about,
            language=first if first in LANGUAGES else LANGUAGES[0],
            urgent=urgent,
            until=Now() + lasting,
        )
        with connection.cursor() as cursor:
            cursor.execute(f"notify {MAIL_CHANNEL}")
    return mail.name


_TO_EACH = """
with mails as (
    insert into mail (name, kind, account, address_id, about, language, urgent, until, attempts)
    select gen_random_uuid(), %(kind)s, %(account)s, address, %(about)s, %(language)s, true,
           clock_timestamp() + %(lasting)s, 0
    from unnest(%(addresses)s::bigint[]) as address
    returning id)
select pg_notify(%(channel)s, '') from mails
"""


def post_to_each(
    name: str, account: str, addresses: Sequence[int | None], *, about: UUID, lasting: timedelta
) -> None:
    """Queue a mail of this kind for each of these addresses, none or more: one statement that takes as long for any.

    Somebody waits for it before a page. The rest as for `post`.
    """
    assert name in KINDS, f"nobody writes mails of the kind {name}"
    first = translation.get_language() or ""
    values = {
        "kind": name,
        "account": account,
        "about": about,
        "language": first if first in LANGUAGES else LANGUAGES[0],
        "lasting": lasting,
        "addresses": list(addresses),
        "channel": MAIL_CHANNEL,
    }
    with connection.cursor() as cursor:
        cursor.execute(_TO_EACH, values)


def write(due: Due, site: Site) -> Letter | None:
    """The mail, in memory only; None where it has become moot. Raises KeyringError where keys cannot be had."""
    parts = []
    for language in sorted(LANGUAGES, key=lambda one: one != due.language):
        with translation.override(language):
            part = KINDS[due.kind](due, site)
        if part is None:
            return None
        parts.append((language, part))
    return letter(parts)
