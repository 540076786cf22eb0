from django.db import migrations, models


class Migration(migrations.Migration):
    """An index of a table that messages flow into is built beside them, never under a lock of the whole table."""

    atomic = False

    dependencies = [
        ("store", "0002_requests_and_processes"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                # What an attempt before this one may have left is not valid.
                migrations.RunSQL(
                    "drop index concurrently if exists inbox_once_per_request", migrations.RunSQL.noop
                ),
                migrations.RunSQL(
                    "create unique index concurrently inbox_once_per_request on inbox (link, request_id)"
                    " where request_id is not null",
                    "drop index concurrently if exists inbox_once_per_request",
                ),
            ],
            state_operations=[
                migrations.AddConstraint(
                    model_name="inbox",
                    constraint=models.UniqueConstraint(
                        condition=models.Q(("request_id__isnull", False)),
                        fields=("link", "request_id"),
                        name="inbox_once_per_request",
                    ),
                ),
            ],
        ),
    ]
