from django.db import migrations, models

SENT = models.Q(("recovery_id__isnull", False), ("state", "sent"))
DROP = "drop index concurrently if exists outbox_otp_sent"


class Migration(migrations.Migration):
    """Which one-time codes a carrier took is looked up by their request: an index of these few. Built beside the flow."""

    atomic = False

    dependencies = [
        ("store", "0021_account_email_since"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                # What an attempt before this one may have left is not valid.
                migrations.RunSQL(DROP, migrations.RunSQL.noop),
                migrations.RunSQL(
                    "create index concurrently outbox_otp_sent on outbox (recovery_id)"
                    " where recovery_id is not null and state = 'sent'",
                    DROP,
                ),
            ],
            state_operations=[
                migrations.AddIndex(
                    model_name="outbox",
                    index=models.Index(fields=["recovery_id"], name="outbox_otp_sent", condition=SENT),
                ),
            ],
        ),
    ]
