from django.apps import AppConfig


class PortalConfig(AppConfig):
    name = "caplai.portal"
    label = "portal"

    def ready(self) -> None:
        # Who sends mails must know how each kind is written.
        import caplai.service.addressbook  # noqa: F401
