from django.db import migrations, models

import caplai.store.models


class Migration(migrations.Migration):
    """Parts of long messages that aggregators bring have ids, as whole messages do."""

    atomic = False

    dependencies = [
        ("store", "0005_inbox_parked"),
    ]

    operations = [
        migrations.AlterField(
            model_name="outbox",
            name="message_id",
            field=caplai.store.models.Text(
                db_collation="C",
                help_text="The SMSC's, kept only where receipts are asked for; of a reply in an HTTP answer a name of ours.",
                null=True,
            ),
        ),
        migrations.SeparateDatabaseAndState(
            database_operations=[
                # Each can be run again, should one after it fail.
                migrations.RunSQL(
                    'alter table segment add column if not exists request_id text collate "C"',
                    "alter table segment drop column if exists request_id",
                ),
                migrations.RunSQL("drop index concurrently if exists segment_request", migrations.RunSQL.noop),
                migrations.RunSQL(
                    "create index concurrently segment_request on segment (link, request_id)"
                    " where request_id is not null",
                    "drop index concurrently if exists segment_request",
                ),
            ],
            state_operations=[
                migrations.AddField(
                    model_name="segment",
                    name="request_id",
                    field=caplai.store.models.Text(
                        db_collation="C", help_text="An aggregator's id of this part.", null=True
                    ),
                ),
                migrations.AddIndex(
                    model_name="segment",
                    index=models.Index(
                        condition=models.Q(("request_id__isnull", False)),
                        fields=["link", "request_id"],
                        name="segment_request",
                    ),
                ),
            ],
        ),
    ]
