"""The pages and endpoints that we offer: of allauth's URLs only these, by the names that it looks for."""

from django.urls import include, path

from caplai.signin import install, passkeys, passkeys_api, views

urlpatterns = [
    path("login/", views.SignIn.as_view(), name="account_login"),
    path("login/passkey/", passkeys.sign_in, name="sign_in_by_passkey"),
    path("login/passkey/options/", passkeys.sign_in_options, name="sign_in_by_passkey_options"),
    path("logout/", views.sign_out, name="account_logout"),
    path("choose-password/", views.ChoosePassword.as_view(), name="choose_password"),
    path("choose-password/passkey/", passkeys.TakePasskey.as_view(), name="take_passkey"),
    path(
        "choose-password/passkey/options/", passkeys.TakePasskeyOptions.as_view(), name="take_passkey_options"
    ),
    path("manifest.webmanifest", install.manifest, name="manifest"),
    path("service-worker.js", install.service_worker, name="service_worker"),
    path("offline/", install.offline, name="offline"),
    path("_allauth/app/v1/", include("caplai.signin.api")),
    path("_allauth/app/v1/auth/", include("caplai.signin.passkeys_api")),
    path(".well-known/assetlinks.json", passkeys_api.asset_links),
    path(".well-known/apple-app-site-association", passkeys_api.apple_app_site_association),
]
