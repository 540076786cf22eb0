"""The pages and endpoints that we offer: of allauth's URLs only these, by the names that it looks for."""

from django.urls import include, path

from caplai.signin import views

urlpatterns = [
    path("", views.home, name="home"),
    path("login/", views.SignIn.as_view(), name="account_login"),
    path("logout/", views.sign_out, name="account_logout"),
    path("choose-password/", views.ChoosePassword.as_view(), name="choose_password"),
    path("_allauth/app/v1/", include("caplai.signin.api")),
]
