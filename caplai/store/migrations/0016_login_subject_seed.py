from django.db import migrations

import caplai.store.models


class Migration(migrations.Migration):
    """Filled when a person first signs in to a client; a nullable column costs no rewrite."""

    dependencies = [
        ("store", "0015_recovery"),
    ]

    operations = [
        migrations.AddField(
            model_name="login",
            name="subject_seed",
            field=caplai.store.models.Text(
                null=True,
                help_text="128 random bits in hexadecimal: see service/federation.py.",
            ),
        ),
    ]
