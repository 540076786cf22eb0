from django.db import migrations, models


class Migration(migrations.Migration):
    """The age of the agency's address. Old code leaves it empty, and so as old as can be. While it is empty a row is
    no larger: the bitmap of what is null fits into its header's padding (measured).
    """

    dependencies = [
        ("store", "0020_recovery_sent"),
    ]

    operations = [
        migrations.AddField(
            model_name="account",
            name="email_since",
            field=models.DateTimeField(
                help_text="When another address took the place of one before; empty: it is as old as can be.", null=True
            ),
        ),
    ]
