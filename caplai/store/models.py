"""The only tables. The hot ones (account, inbox, outbox, reissue_case) are read and written by the
set-based SQL of queues.py and service/; the ORM serves everywhere else.

Hot tables have no foreign keys to `account`: each insert would lock (and so dirty) a page of a table of
millions, and the tables could not be spread by account later. The service layer keeps them true.
"""

import secrets
import uuid

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.crypto import salted_hmac

from caplai.store.contact import Address as Address
from caplai.store.contact import Hold as Hold
from caplai.store.contact import Mail as Mail
from caplai.store.fields import Text


class Account(models.Model):
    """A citizen's account. Narrow: 21.6 million rows that the hot paths read."""

    class State(models.TextChoices):
        PENDING = "pending"
        APPROVED = "approved"
        CLOSED = "closed"

    code = Text(primary_key=True, help_text="The insurance code: exactly ten digits, leading zeros matter.")
    phone = Text(help_text="The registered phone, E.164 with plus.")
    email = Text(blank=True, db_default="")
    state = Text(choices=State.choices, db_default=State.PENDING)
    created_at = models.DateTimeField(db_default=Now())
    email_since = models.DateTimeField(
        null=True,
        help_text="When another address took the place of one before; empty: it is as old as can be.",
    )

    class Meta:
        db_table = "account"
        indexes = [models.Index(fields=["phone"], name="account_phone")]
        constraints = [
            models.CheckConstraint(
                condition=Q(code__regex=r"^[0-9]{10}$"), name="account_code_is_ten_digits"
            ),
            models.CheckConstraint(
                condition=Q(phone__regex=r"^\+[0-9]{8,15}$"), name="account_phone_is_e164"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["pending", "approved", "closed"]), name="account_state_is_known"
            ),
        ]


def new_stamp() -> str:
    return secrets.token_hex(8)


class Login(AbstractBaseUser, PermissionsMixin):
    """Who may sign in: a citizen's (with an account, made at the first sign-in) or an operator's (without)."""

    username = Text(unique=True, help_text="The account's code, or the operator's name.")
    # No foreign key either: it would write to the account's page at each first sign-in, and keep `account` from
    # being spread over nodes (docs/scaling.md). Accounts are closed, never deleted.
    account = models.OneToOneField(
        Account, models.PROTECT, null=True, blank=True, related_name="login", db_constraint=False
    )
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False)
    stamp = Text(default=new_stamp, help_text="Changing it ends every session and remembered device.")
    created_at = models.DateTimeField(db_default=Now())
    subject_seed = Text(null=True, help_text="128 random bits in hexadecimal: see service/federation.py.")

    USERNAME_FIELD = "username"
    objects = BaseUserManager()

    class Meta:
        db_table = "login"
        constraints = [
            models.CheckConstraint(
                condition=Q(account__isnull=True) | Q(is_staff=False, is_superuser=False),
                name="login_with_account_has_no_staff_rights",
            ),
            models.CheckConstraint(
                condition=Q(account__isnull=True) | Q(username=models.F("account")),
                name="login_username_is_the_code",
            ),
            models.CheckConstraint(
                condition=Q(account__isnull=False) | ~Q(username__regex=r"^[0-9]{10}$"),
                name="login_of_an_operator_is_no_code",
            ),
        ]

    def _get_session_auth_hash(self, secret: str | None = None) -> str:
        """What a session must carry to live. Django asks for it with the active and with the older secrets."""
        return salted_hmac("caplai.login", self.stamp, secret=secret, algorithm="sha256").hexdigest()

    def set_password(self, raw_password: str | None) -> None:
        """Another password ends every session; the same one hashed anew ends none, so the stamp says it."""
        super().set_password(raw_password)
        self.stamp = new_stamp()  # type: ignore[assignment]


class TakenOverPassword(models.Model):
    """A hash of another system's that came with the import, until its owner's first sign-in (service/credentials.py).

    A table of its own: `account` is read by every message and would be 1.6 times as large with it, and a login for
    each of millions who may never come costs an import five times as much processor and twice the WAL (measured).
    """

    code = Text(primary_key=True, help_text="The account's code.")
    hash = Text(help_text="In a form of Django's (domain/foreign_hash.py), without a pepper of ours.")
    taken_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "taken_over_password"
        # Retention looks for old ones; they come by the million at once, so a summary of page ranges is enough.
        indexes = [BrinIndex(fields=["taken_at"], name="taken_over_password_taken_at")]


class Device(models.Model):
    """A device that signed in before: it has guesses of its own. Only a hash of its token is kept.

    A family's browser has one token, with a row for each of its logins.
    """

    login = models.ForeignKey(Login, models.CASCADE, related_name="devices")
    token_hash = models.BinaryField()
    created_at = models.DateTimeField(db_default=Now())
    used_at = models.DateTimeField(db_default=Now(), help_text="The last completed sign-in with it.")
    client = Text(db_default="", help_text="Program and system, coarsely (signin/client.py).")

    class Meta:
        db_table = "device"
        constraints = [models.UniqueConstraint(fields=["token_hash", "login"], name="device_once_per_login")]


class Sitting(models.Model):
    """Where a login is signed in: one session, of a browser or of an app, as its owner may see and end it.

    It lives while Django's row with its key does and the login's stamp is the same; it never makes a session live.
    """

    row_key = Text(unique=True, help_text="The key of the session's row: a hash (signin/sessions.py).")
    login_id = models.BigIntegerField()
    device_id = models.BigIntegerField(null=True, help_text="The remembered device that it was opened with.")
    stamp = Text(help_text="The login's, when it was opened.")
    client = Text(help_text="Program and system, coarsely (signin/client.py).")
    created_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(
        db_default=Now(), help_text="The last use, told a few times an hour at most."
    )

    class Meta:
        db_table = "sitting"
        indexes = [models.Index(fields=["login_id"], name="sitting_login")]


class Guess(models.Model):
    """A failed sign-in. `account` is empty when there is no such account; `device` when it is unknown."""

    at = models.DateTimeField(db_default=Now())
    account = Text(null=True)
    device = models.BigIntegerField(null=True)
    network = Text()
    cleared = models.BooleanField(
        db_default=False, help_text="A completed sign-in cleared it for the account."
    )

    class Meta:
        db_table = "guess"
        indexes = [
            models.Index(fields=["account", "at"], name="guess_account", condition=Q(cleared=False)),
            models.Index(fields=["network", "at"], name="guess_network"),
            models.Index(fields=["at"], name="guess_at"),
        ]


class Case(models.Model):
    """One need for a password, with all its repeats. The password is derived from these frozen inputs."""

    class End(models.TextChoices):
        USED = "used"
        EXPIRED = "expired"
        GUESSED_OUT = "guessed_out"
        ACCOUNT_CHANGED = "account_changed"
        RESTORED = "restored", "the database came back from a backup"
        KEY_DESTROYED = "key_destroyed", "an operator destroyed its key"
        REPORTED = "reported", "its account's owner said: this was not me"

    pk = models.CompositePrimaryKey("account", "id")
    account = Text(help_text="The account's code.")
    id = models.UUIDField(default=uuid.uuid4, help_text="128 random bits.")
    phone = Text(help_text="Where its password goes.")
    channel = Text()
    key = Text(help_text="The id of the issuing key.")
    version = models.SmallIntegerField()
    length = models.SmallIntegerField()
    alphabet = Text()
    texts = models.SmallIntegerField(default=1, help_text="How many texts carry its password.")
    opened_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    ended_as = Text(null=True, choices=End.choices)
    # What figures need to know of the account's other cases once these, or this one, name no account any more.
    previous_on = models.DateField(
        null=True, help_text="The day of the account's case before this one, where that has no account now."
    )
    nth = models.SmallIntegerField(
        null=True,
        help_text="Which of its account's cases of that month it was; only where the account is gone.",
    )

    class Meta:
        db_table = "reissue_case"  # `case` is a reserved word of SQL
        indexes = [
            models.Index(fields=["phone", "opened_at"], name="reissue_case_phone"),
            BrinIndex(fields=["opened_at"], name="reissue_case_by_time", autosummarize=True),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["account"],
                condition=Q(ended_at__isnull=True),
                name="reissue_case_one_open_per_account",
            ),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True, ended_as__isnull=True)
                | Q(ended_at__isnull=False, ended_as__isnull=False),
                name="reissue_case_end_has_a_reason",
            ),
        ]


class Recovery(models.Model):
    """Somebody who forgot a password and asked for a way back by page or app; for unknown codes, too.

    The OTP is derived from `id`, `code` and the key (domain/otp.py). Who asked keeps a secret.
    """

    class Channel(models.TextChoices):
        SMS = "sms"
        EMAIL = "email"

    class End(models.TextChoices):
        PROVED = "proved"
        LINKED = "linked", "proved by the link of its e-mail, in another browser than the one that asked"
        TRIED_OUT = "tried_out", "too many wrong tries"
        RESTORED = "restored", "the database came back from a backup"

    id = models.UUIDField(primary_key=True, help_text="128 random bits.")
    code = Text(help_text="As it was asked for, known or not.")
    channel = Text(choices=Channel.choices)
    phone = Text(null=True, help_text="Where the OTP went; empty where none was sent by SMS.")
    addresses = models.BinaryField(
        null=True,
        help_text="SHA-256 of the e-mail addresses that it was mailed to; empty where there were none.",
    )
    network = Text()
    prefix = Text(help_text="The network's neighbourhood: an IPv4 /24, an IPv6 /48.")
    secret_hash = models.BinaryField(unique=True, help_text="SHA-256 of what the asking browser keeps.")
    key = Text(help_text="The id of the issuing key.")
    version = models.SmallIntegerField()
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    tries = models.SmallIntegerField(db_default=0, help_text="Wrong ones.")
    asks = models.SmallIntegerField(
        db_default=1, help_text="How often it was to be sent, whether it could be or not."
    )
    sends = models.SmallIntegerField(db_default=0, help_text="How many messages there were.")
    asked_at = models.DateTimeField(help_text="The last time that it was to be sent.")
    proved_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    ended_as = Text(null=True, choices=End.choices)
    outcome = Text(null=True, help_text="What the re-issue said after the proof (domain/policy.py).")
    until = models.DateTimeField(null=True, help_text="With over_limit: until when.")
    by_text = models.BooleanField(
        null=True, help_text="With over_limit: whether a text would be answered now."
    )

    class Meta:
        db_table = "recovery"
        indexes = [
            models.Index(fields=["code", "created_at"], name="recovery_code"),
            models.Index(
                fields=["phone", "created_at"], name="recovery_phone", condition=Q(phone__isnull=False)
            ),
            models.Index(fields=["network", "created_at"], name="recovery_network"),
            models.Index(fields=["prefix", "created_at"], name="recovery_prefix"),
            models.Index(fields=["created_at"], name="recovery_created_at"),
            models.Index(
                fields=["created_at"], name="recovery_sent", condition=Q(channel="sms", sends__gt=0)
            ),
        ]


class LinkSession(models.Model):
    """One bind of one engine to one link.

    `confirmed_at`: what was acknowledged before this moment is known to have arrived, because the SMSC
    answered a request that we sent later on the same connection.
    """

    link = Text()
    engine = Text(help_text="Host, process id, and something random.")
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())
    confirmed_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "link_session"
        indexes = [models.Index(fields=["link", "started_at"], name="link_session_link")]


class Inbox(models.Model):
    """A message from a phone (MO). Its row is inserted, and committed, before it is acknowledged."""

    class Closed(models.TextChoices):
        """Outcomes of messages that were never decided (all others are domain/policy.py's)."""

        GIVEN_UP = "given_up", "parked until its text was too old to be kept"
        RESTORED = "restored", "undecided when the database came back from a backup"

    id = models.BigAutoField(primary_key=True)
    received_at = models.DateTimeField(db_default=Now())
    link = Text()
    request_id = Text(null=True, help_text="An aggregator's id of it: the same id again is the same message.")
    session = models.BigIntegerField(null=True)
    source = Text(help_text="As the carrier gave it.")
    source_ton = models.SmallIntegerField(db_default=1)
    source_npi = models.SmallIntegerField(db_default=1)
    destination = Text()
    coding = models.SmallIntegerField(db_default=0)
    text = models.TextField()
    decided_at = models.DateTimeField(null=True)
    outcome = Text(null=True)
    case_id = models.UUIDField(null=True)
    error = Text(null=True, help_text="Why it is parked: the class of the error and where, never its text.")

    class Meta:
        db_table = "inbox"
        indexes = [
            models.Index(
                fields=["id"], name="inbox_waiting", condition=Q(outcome__isnull=True, error__isnull=True)
            ),
            models.Index(
                fields=["id"], name="inbox_parked", condition=Q(outcome__isnull=True, error__isnull=False)
            ),
            models.Index(fields=["source", "received_at"], name="inbox_source"),
            BrinIndex(fields=["received_at"], name="inbox_by_time", autosummarize=True),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["link", "request_id"],
                condition=Q(request_id__isnull=False),
                name="inbox_once_per_request",
            )
        ]


class Segment(models.Model):
    """A part of a long message, kept until the others have come or the time is up."""

    link = Text()
    request_id = Text(null=True, help_text="An aggregator's id of this part.")
    source = Text()
    destination = Text()
    reference = models.IntegerField()
    total = models.SmallIntegerField()
    number = models.SmallIntegerField()
    source_ton = models.SmallIntegerField()
    source_npi = models.SmallIntegerField()
    session = models.BigIntegerField(null=True)
    coding = models.SmallIntegerField()
    payload = models.BinaryField()
    received_at = models.DateTimeField(db_default=Now())
    joined_at = models.DateTimeField(null=True, help_text="Kept for a while to recognise a redelivery.")

    class Meta:
        db_table = "segment"
        constraints = [
            models.UniqueConstraint(
                fields=["link", "source", "destination", "reference", "total", "number"],
                condition=Q(joined_at__isnull=True),
                name="segment_once",
            )
        ]
        indexes = [
            models.Index(fields=["received_at"], name="segment_received_at"),
            models.Index(
                fields=["link", "request_id"], name="segment_request", condition=Q(request_id__isnull=False)
            ),
        ]


class Wording(models.Model):
    """Every text ever sent, without what differs from person to person.

    Interned, so that a reply is sent again with the identical text whatever the configuration says by then.
    """

    text = Text(unique=True)

    class Meta:
        db_table = "wording"


class Outbox(models.Model):
    """A message to a phone (MT). The text is made from the wording and the case, in memory only."""

    class State(models.TextChoices):
        READY = "ready"
        CLAIMED = "claimed"
        SENT = "sent"
        FAILED = "failed"
        EXPIRED = "expired"

    id = models.BigAutoField(primary_key=True)
    created_at = models.DateTimeField(db_default=Now())
    inbox_id = models.BigIntegerField(null=True)
    kind = Text(help_text="The outcome that it tells.")
    wording = models.IntegerField()
    account = Text(null=True)
    case_id = models.UUIDField(null=True)
    recovery_id = models.UUIDField(null=True, help_text="Of an OTP: whose.")
    until = models.DateTimeField(null=True)
    link = Text()
    sender = Text()
    destination = Text(help_text="Digits, as SMPP wants them.")
    destination_ton = models.SmallIntegerField(null=True, help_text="Empty: as the link is configured.")
    destination_npi = models.SmallIntegerField(null=True)
    state = Text(db_default=State.READY, choices=State.choices)
    attempts = models.SmallIntegerField(db_default=0)
    due_at = models.DateTimeField(db_default=Now())
    claimed_by = Text(null=True)
    settled_at = models.DateTimeField(null=True)
    status = models.BigIntegerField(null=True, help_text="The last command_status of the SMSC.")
    message_id = Text(
        null=True,
        help_text="The SMSC's, kept only where receipts are asked for; of a reply in an HTTP answer a name of ours.",
    )
    receipt = Text(null=True, help_text="The receipt's state, raw.")

    class Meta:
        db_table = "outbox"
        indexes = [
            models.Index(
                fields=["link", "due_at"], name="outbox_waiting", condition=Q(state__in=["ready", "claimed"])
            ),
            models.Index(
                fields=["message_id"], name="outbox_message_id", condition=Q(message_id__isnull=False)
            ),
            BrinIndex(fields=["created_at"], name="outbox_by_time", autosummarize=True),
            models.Index(
                fields=["recovery_id"],
                name="outbox_otp_sent",
                condition=Q(recovery_id__isnull=False, state="sent"),
            ),
        ]


class Receipt(models.Model):
    """A delivery receipt as it came. `outbox` stays empty when it matches nothing that we sent."""

    received_at = models.DateTimeField(db_default=Now())
    link = Text()
    message_ids = ArrayField(
        models.TextField(), help_text="The id in each form that a carrier might have meant."
    )
    state = Text(null=True, help_text="Raw; empty when the receipt names none.")
    error = Text(null=True)
    outbox_id = models.BigIntegerField(null=True)

    class Meta:
        db_table = "receipt"
        indexes = [
            models.Index(
                fields=["link", "received_at"], name="receipt_unmatched", condition=Q(outbox_id__isnull=True)
            )
        ]


class Event(models.Model):
    """What happened to an account or the service outside the message flow. Holds no phone and no code."""

    at = models.DateTimeField(db_default=Now())
    kind = Text()
    login_id = models.BigIntegerField(null=True)
    case_id = models.UUIDField(null=True)
    data = models.JSONField(default=dict)

    class Meta:
        db_table = "event"
        indexes = [models.Index(fields=["login_id", "at"], name="event_login")]


class Switch(models.Model):
    """A decision of the operator's that holds for every process at once, such as a closed service."""

    name = Text(primary_key=True)
    value = models.JSONField()
    changed_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "switch"


class Process(models.Model):
    """An engine or a web server that runs, as it last said. One whose `seen_at` is old has ended."""

    name = Text(primary_key=True, help_text="Host, process id, and something random.")
    kind = Text(help_text="engine or web")
    version = Text(help_text="Of caplai.")
    keys = ArrayField(
        models.TextField(), help_text="The keys that it can read: kind/id/fingerprint (keyring.Token)."
    )
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "process"


class Key(models.Model):
    """What is known of a key of the keyring: everything but the key. One of each kind is active.

    waiting → active → retired → destroyed, and waiting → destroyed where a newer one was first. Never back.
    """

    class State(models.TextChoices):
        WAITING = "waiting", "becomes active when everybody can read it"
        ACTIVE = "active"
        RETIRED = "retired", "still read, used for nothing new"
        DESTROYED = "destroyed"

    number = models.BigAutoField(primary_key=True, help_text="The order of the keys: a clock may step.")
    kind = Text()
    id = Text(help_text="Its id in the keyring.")
    fingerprint = Text()
    state = Text(choices=State.choices)
    added_at = models.DateTimeField(db_default=Now())
    not_before = models.DateTimeField(db_default=Now(), help_text="It becomes active no sooner.")
    activated_at = models.DateTimeField(null=True)
    retired_at = models.DateTimeField(null=True)
    looked_at = models.DateTimeField(
        null=True, help_text="When it was last asked who needs it, once retired."
    )
    destroyed_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "key"
        constraints = [
            models.UniqueConstraint(fields=["kind", "id"], name="key_once"),
            models.UniqueConstraint(
                fields=["kind"], condition=Q(state="active"), name="key_one_active_per_kind"
            ),
        ]


class Retention(models.Model):
    """How far a kind of data has been gone through by the job that removes what is too old."""

    name = Text(primary_key=True)
    mark = models.JSONField(default=dict, help_text="Where the next step begins.")
    rows = models.BigIntegerField(default=0, help_text="How many rows it has ever changed or removed.")
    finished_at = models.DateTimeField(null=True, help_text="When nothing was left to do, the last time.")

    class Meta:
        db_table = "retention"


# --- figures ---------------------------------------------------------------------------------------

# Rollups by day of the agency (caplai/reports/rollups.py): what is in them can be computed anew from the tables
# above, except masked phones of months whose phones have been removed, and counts of accounts at former times.


class FiguresDay(models.Model):
    """A day that has been rolled up. Rows of the other rollups count only if their day is here."""

    day = models.DateField(primary_key=True)
    built_at = models.DateTimeField()

    class Meta:
        db_table = "figures_day"


class FiguresMessages(models.Model):
    """Messages of a day: what came, by outcome, and what was to be sent, by what became of it and by kind."""

    pk = models.CompositePrimaryKey("day", "state", "kind")
    day = models.DateField()
    state = Text(help_text="`received`, or of the outbox: sent, failed, …, raw.")
    kind = Text(help_text="The outcome, raw; of a message without one `waiting` or `parked`.")
    count = models.BigIntegerField()

    class Meta:
        db_table = "figures_messages"


class FiguresReissues(models.Model):
    """Re-issues of a day, by the day of the account's one before: distinct people of any period are in it."""

    pk = models.CompositePrimaryKey("day", "previous_on")
    day = models.DateField()
    previous_on = models.DateField(help_text="0001-01-01 where none is known.")
    count = models.BigIntegerField()

    class Meta:
        db_table = "figures_reissues"


class FiguresTimes(models.Model):
    """How long things of a day took, as a histogram whose boundaries never change (rollups.RATIO)."""

    pk = models.CompositePrimaryKey("day", "what", "link", "bucket")
    day = models.DateField()
    what = Text(help_text="`reply` or `sign_in`.")
    link = Text()
    bucket = models.SmallIntegerField(help_text="n: more than RATIO**(n-1) seconds, RATIO**n at most.")
    count = models.BigIntegerField()

    class Meta:
        db_table = "figures_times"


class FiguresHeavy(models.Model):
    """On which days of a month its heaviest phones were given a re-issue."""

    FOR_EVER = 10
    """How many of a month are kept, masked, when their phones have been removed everywhere else."""

    pk = models.CompositePrimaryKey("month", "number", "day")
    month = models.DateField(help_text="Its first day.")
    number = models.SmallIntegerField(help_text="1: the heaviest of the month.")
    day = models.DateField()
    phone = Text(help_text="Masked.")
    count = models.IntegerField()

    class Meta:
        db_table = "figures_heavy"


class FiguresAccounts(models.Model):
    """How many accounts were approved when they were last counted on a day."""

    day = models.DateField(primary_key=True)
    counted_at = models.DateTimeField()
    approved = models.BigIntegerField()

    class Meta:
        db_table = "figures_accounts"
