"""What an operator decides for the whole service."""

from django.db import transaction

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
