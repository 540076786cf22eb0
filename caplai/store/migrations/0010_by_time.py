import django.contrib.postgres.indexes
from django.db import migrations


def _by_time(model, table, column):
    """Some dozens of bytes for each megabyte of the table: it costs what is inserted next to nothing."""
    name = f"{table}_by_time"
    return migrations.SeparateDatabaseAndState(
        database_operations=[
            # What an attempt before this one may have left is not valid.
            migrations.RunSQL(f"drop index concurrently if exists {name}", migrations.RunSQL.noop),
            migrations.RunSQL(
                f"create index concurrently {name} on {table} using brin ({column}) with (autosummarize = on)",
                f"drop index concurrently if exists {name}",
            ),
        ],
        state_operations=[
            migrations.AddIndex(
                model_name=model,
                index=django.contrib.postgres.indexes.BrinIndex(autosummarize=True, fields=[column], name=name),
            ),
        ],
    )


class Migration(migrations.Migration):
    """For the figures of a day. Built beside the flow, never under a lock of the whole table."""

    atomic = False

    dependencies = [
        ("store", "0009_figures"),
    ]

    operations = [
        _by_time("case", "reissue_case", "opened_at"),
        _by_time("inbox", "inbox", "received_at"),
        _by_time("outbox", "outbox", "created_at"),
    ]
