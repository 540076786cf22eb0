from django.apps import AppConfig


class OidcConfig(AppConfig):
    name = "caplai.portal.oidc"
    label = "portal_oidc"

    def ready(self) -> None:
        from allauth.idp.oidc.internal.oauthlib import server

        from caplai.portal.oidc.validator import Validator

        # allauth has no setting for it; its version is pinned, and a test asks that each of its servers has ours.
        server.OAuthLibRequestValidator = Validator
