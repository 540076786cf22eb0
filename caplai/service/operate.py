"""What an operator decides for the whole service."""

from django.db import connection, transaction

from caplai.store.models import Event, Switch


def switch_service(is_open: bool) -> None:
    """Open or close the SMS service; every engine obeys from its next batch on."""
    with transaction.atomic():
        Switch.objects.update_or_create(
            name="service",
            defaults={"value": {"open": is_open}},
            create_defaults={"value": {"open": is_open}},
        )
        Event.objects.create(kind="service_opened" if is_open else "service_closed")


def keys_in_use() -> dict[tuple[str, str], str]:
    """What still needs each key, in words: (kind, key id) → "12 open cases"."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select key, count(*) from reissue_case where ended_at is null and expires_at > now() group by key"
        )
        used = {("issuing", key): f"{count} open cases" for key, count in cursor.fetchall()}
        cursor.execute(
            "select split_part(password, '$', 2), count(*) from login where password like 'argon2p$%' group by 1"
        )
        return used | {("pepper", key): f"{count} chosen passwords" for key, count in cursor.fetchall()}
