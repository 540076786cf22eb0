from django.db import migrations

import caplai.store.fields


class Migration(migrations.Migration):
    """What a forgotten password's request may end as. Only the models' own words: the column stays as it is."""

    dependencies = [
        ("store", "0022_outbox_otp_sent"),
    ]

    operations = [
        migrations.AlterField(
            model_name="recovery",
            name="ended_as",
            field=caplai.store.fields.Text(
                choices=[
                    ("proved", "Proved"),
                    ("linked", "proved by the link of its e-mail, in another browser than the one that asked"),
                    ("tried_out", "too many wrong tries"),
                    ("restored", "the database came back from a backup"),
                ],
                db_collation="C",
                null=True,
            ),
        ),
    ]
