from django.apps import AppConfig


class OidcConfig(AppConfig):
    name = "caplai.portal.oidc"
    label = "portal_oidc"
