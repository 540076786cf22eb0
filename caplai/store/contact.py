"""Tables of how an account's owner is reached beside the phone: addresses, what is to be mailed to them, and what
stands still because an owner objected.

A part of the one app (models.py loads it), in a file of its own.
"""

import uuid

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from caplai.store.fields import Text


class Mail(models.Model):
    """An e-mail to be sent. Its text, with what is secret in it, is made in memory only (service/mail.py)."""

    class State(models.TextChoices):
        READY = "ready"
        CLAIMED = "claimed"
        SENT = "sent"
        FAILED = "failed", "for good, see `error`; nothing is tried again"

    id = models.BigAutoField(primary_key=True)
    name = models.UUIDField(
        default=uuid.uuid4, help_text="A random name of it: of the message, and in its link."
    )
    created_at = models.DateTimeField(db_default=Now())
    kind = Text(help_text="Who writes its text: a name that service/mail.py knows.")
    account = Text(help_text="The account's code.")
    address_id = models.BigIntegerField(
        null=True, help_text="Of `address`; empty: the address in the agency's registry (account.email)."
    )
    about = models.UUIDField(null=True, help_text="The case, the recovery or whatever its kind is about.")
    language = Text(db_default="vi", help_text="Which of the two languages stands first.")
    urgent = models.BooleanField(db_default=False, help_text="Somebody waits for it before a page.")
    until = models.DateTimeField(help_text="It is of no use to anybody later.")
    due_at = models.DateTimeField(db_default=Now())
    state = Text(db_default=State.READY, choices=State.choices)
    attempts = models.SmallIntegerField(db_default=0)
    claimed_by = Text(null=True)
    settled_at = models.DateTimeField(null=True)
    error = Text(null=True, help_text="Of the last attempt: a class or an SMTP code, never a text.")

    class Meta:
        db_table = "mail"
        indexes = [
            # In the order of a claim, which else would sort all that waits.
            models.Index(
                fields=["-urgent", "due_at"], name="mail_due", condition=Q(state__in=["ready", "claimed"])
            ),
            models.Index(fields=["name"], name="mail_name"),
        ]


class Address(models.Model):
    """An e-mail address that an account's owner added. (The agency's own stands in `account`, and counts as confirmed.)

    The code that confirms it is derived from its name (domain/capability.py), and stands in no table.
    """

    id = models.BigAutoField(primary_key=True)
    name = models.UUIDField(default=uuid.uuid4, help_text="Random.")
    account = Text(help_text="The account's code.")
    email = Text()
    added_at = models.DateTimeField(db_default=Now())
    codes = models.SmallIntegerField(default=1, help_text="How often its code was sent.")
    tries = models.SmallIntegerField(default=0, help_text="How many codes were typed, wrong or right.")
    confirmed_at = models.DateTimeField(null=True)
    removed_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "address"
        indexes = [
            models.Index(fields=["account", "added_at"], name="address_account"),
            models.Index(
                fields=["removed_at"], name="address_removed", condition=Q(removed_at__isnull=False)
            ),
            models.Index(
                fields=["added_at"],
                name="address_unconfirmed",
                condition=Q(removed_at__isnull=True, confirmed_at__isnull=True),
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["account"],
                condition=Q(removed_at__isnull=True, confirmed_at__isnull=True),
                name="address_one_unconfirmed_per_account",
            )
        ]


class Hold(models.Model):
    """An account that somebody reported ("this was not me"): nothing is issued for it until the counter lifts it."""

    id = models.BigAutoField(primary_key=True)
    account = Text(help_text="The account's code.")
    since = models.DateTimeField(db_default=Now())
    by = Text(help_text="How it was reported: `mail` (the link in a notice) or `session` (signed in).")
    case_id = models.UUIDField(null=True, help_text="The case that the notice told of, or that was open.")
    switched_off = models.BooleanField(
        db_default=False, help_text="It switched the login off, so its lifting switches it on."
    )
    lifted_at = models.DateTimeField(null=True)
    lifted_by = Text(null=True, help_text="Who lifted it, as they called themselves.")

    class Meta:
        db_table = "hold"
        constraints = [
            models.UniqueConstraint(
                fields=["account"], condition=Q(lifted_at__isnull=True), name="hold_one_per_account"
            )
        ]
