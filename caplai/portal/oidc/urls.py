"""Of allauth's URLs those that we offer, by its names and at its places."""

from allauth.core.internal import jwkkit
from allauth.idp.oidc.internal.oauthlib import server
from allauth.idp.oidc.views import jwks, user_info
from django.urls import include, path

from caplai.portal.oidc import agreements, views
from caplai.portal.oidc.adapter import load_key
from caplai.portal.oidc.cors import for_pages
from caplai.portal.oidc.logout import Logout
from caplai.portal.oidc.validator import Validator

# allauth has no settings for these; its version is pinned, and a test asks that it has ours. Here and not where Django
# loads the apps, so that an engine does not carry all that a provider needs.
server.OAuthLibRequestValidator = Validator
jwkkit.load_pem = load_key

_PATTERNS = [
    path(".well-known/openid-configuration", views.configuration, name="configuration"),
    path(".well-known/jwks.json", jwks, name="jwks"),
    path("identity/o/authorize", views.Authorize.as_view(), name="authorization"),
    path("identity/o/logout", Logout.as_view(), name="logout"),
    path("identity/o/api/token", for_pages(views.Token.as_view()), name="token"),
    path("identity/o/api/userinfo", for_pages(user_info), name="userinfo"),
    path("identity/o/api/revoke", for_pages(views.Revoke.as_view()), name="revoke"),
    path("identity/o/api/introspect", views.Introspect.as_view(), name="introspect"),
]
urlpatterns = [
    path("account/apps/", agreements.shown, name="account_apps"),
    path("account/apps/end/", agreements.end, name="account_apps_end"),
    path("_allauth/app/v1/account/apps", agreements.endpoint),
    path("", include(([path("", include((_PATTERNS, "oidc")))], "idp"))),
]
