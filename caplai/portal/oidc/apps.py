from django.apps import AppConfig


class OidcConfig(AppConfig):
    name = "caplai.portal.oidc"
    label = "portal_oidc"

    def ready(self) -> None:
        from allauth.core.internal import jwkkit
        from allauth.idp.oidc.internal.oauthlib import server

        from caplai.portal.oidc.adapter import load_key
        from caplai.portal.oidc.validator import Validator

        # allauth has no settings for these; its version is pinned, and a test asks that it has ours.
        server.OAuthLibRequestValidator = Validator
        jwkkit.load_pem = load_key
