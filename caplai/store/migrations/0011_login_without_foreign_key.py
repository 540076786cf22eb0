import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """A login's account is checked when the login is made, by the code that is its name. See the model."""

    dependencies = [
        ("store", "0010_by_time"),
    ]

    operations = [
        migrations.AlterField(
            model_name="login",
            name="account",
            field=models.OneToOneField(
                blank=True,
                db_constraint=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="login",
                to="store.account",
            ),
        ),
    ]
