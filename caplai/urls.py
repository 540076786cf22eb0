"""The site: every page belongs to a room, which lists its own."""

from django.urls import include, path

urlpatterns = [path("", include("caplai.signin.urls"))]
handler500 = "caplai.signin.outage.server_error"
