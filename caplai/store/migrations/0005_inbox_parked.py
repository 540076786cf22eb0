from django.db import migrations, models


class Migration(migrations.Migration):
    """Built beside the messages that flow in, as in 0003."""

    atomic = False

    dependencies = [
        ("store", "0004_keys"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL("drop index concurrently if exists inbox_parked", migrations.RunSQL.noop),
                migrations.RunSQL(
                    "create index concurrently inbox_parked on inbox (id)"
                    " where outcome is null and error is not null",
                    "drop index concurrently if exists inbox_parked",
                ),
            ],
            state_operations=[
                migrations.AddIndex(
                    model_name="inbox",
                    index=models.Index(
                        condition=models.Q(("error__isnull", False), ("outcome__isnull", True)),
                        fields=["id"],
                        name="inbox_parked",
                    ),
                ),
            ],
        ),
    ]
