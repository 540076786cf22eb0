"""The site: every page belongs to a room, which lists its own.

Not here is what needs nothing that pages need: the door for aggregators (`/sms/`, caplai/wiring.py).
"""

from django.urls import include, path

from caplai.portal import openapi

urlpatterns = [
    path("", include("caplai.signin.urls")),
    path("", include("caplai.portal.urls")),
    path("", include("caplai.portal.oidc.urls")),
    path("_allauth/openapi.json", openapi.document),
]
handler500 = "caplai.signin.outage.server_error"
