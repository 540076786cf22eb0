from django.apps import AppConfig


class PortalConfig(AppConfig):
    name = "caplai.portal"
    label = "portal"
