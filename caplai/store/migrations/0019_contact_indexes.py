from django.db import migrations, models

import caplai.store.fields

WAITING = models.Q(("state__in", ["ready", "claimed"]))
UNCONFIRMED = models.Q(("confirmed_at__isnull", True), ("removed_at__isnull", True))


def _index(model, index, sql):
    """Built beside the flow. What an attempt before this one may have left is not valid."""
    drop = f"drop index concurrently if exists {index.name}"
    return migrations.SeparateDatabaseAndState(
        database_operations=[
            migrations.RunSQL(drop, migrations.RunSQL.noop),
            migrations.RunSQL(f"create index concurrently {index.name} on {sql}", drop),
        ],
        state_operations=[migrations.AddIndex(model_name=model, index=index)],
    )


class Migration(migrations.Migration):
    """The queue of mails is claimed, and addresses that nobody confirmed are removed, by an index each."""

    atomic = False

    dependencies = [
        ("store", "0018_recovery_by_mail"),
    ]

    operations = [
        _index(
            "mail",
            models.Index(fields=["-urgent", "due_at"], name="mail_due", condition=WAITING),
            "mail (urgent desc, due_at) where state in ('ready', 'claimed')",
        ),
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    "drop index concurrently if exists mail_waiting",
                    "create index concurrently if not exists mail_waiting on mail (urgent, due_at)"
                    " where state in ('ready', 'claimed')",
                ),
            ],
            state_operations=[migrations.RemoveIndex(model_name="mail", name="mail_waiting")],
        ),
        _index(
            "address",
            models.Index(fields=["added_at"], name="address_unconfirmed", condition=UNCONFIRMED),
            "address (added_at) where confirmed_at is null and removed_at is null",
        ),
        migrations.AlterField(
            model_name="recovery",
            name="ended_as",
            field=caplai.store.fields.Text(
                choices=[
                    ("proved", "Proved"),
                    ("tried_out", "too many wrong tries"),
                    ("replaced", "the same browser asked for another one"),
                    ("restored", "the database came back from a backup"),
                ],
                db_collation="C",
                null=True,
            ),
        ),
    ]
