from django.db import migrations, models

SENT = models.Q(("channel", "sms"), ("sends__gt", 0))
DROP = "drop index concurrently if exists recovery_sent"


class Migration(migrations.Migration):
    """What the site sent within an hour is summed under a lock: by an index of nothing else. Built beside the flow."""

    atomic = False

    dependencies = [
        ("store", "0019_contact_indexes"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                # What an attempt before this one may have left is not valid.
                migrations.RunSQL(DROP, migrations.RunSQL.noop),
                migrations.RunSQL(
                    "create index concurrently recovery_sent on recovery (created_at)"
                    " where channel = 'sms' and sends > 0",
                    DROP,
                ),
            ],
            state_operations=[
                migrations.AddIndex(
                    model_name="recovery",
                    index=models.Index(fields=["created_at"], name="recovery_sent", condition=SENT),
                ),
            ],
        ),
    ]
