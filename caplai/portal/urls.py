"""The citizen's pages around the sign-in."""

from django.urls import include, path

from caplai.portal import access, account, emails, passkeys, recover, report

urlpatterns = [
    path("", account.home, name="home"),
    path("account/read/", account.read, name="account_read"),
    path("account/password/", account.ChangePassword.as_view(), name="account_password"),
    path("account/devices/", account.devices, name="account_devices"),
    path("account/devices/end/", account.end_device, name="account_device_end"),
    path("account/devices/others/", account.end_others, name="account_devices_end"),
    path("account/history/", account.happened, name="account_history"),
    path("_allauth/app/v1/account/", include("caplai.portal.api_account")),
    path("account/again/", access.sign_in_again, name="sign_in_again"),
    path("account/email/", emails.addresses, name="account_email"),
    path("account/email/add/", emails.Add.as_view(), name="account_email_add"),
    path("account/email/confirm/", emails.Confirm.as_view(), name="account_email_confirm"),
    path("account/email/again/", emails.again, name="account_email_again"),
    path("account/email/<int:address_id>/remove/", emails.remove, name="account_email_remove"),
    path("_allauth/app/v1/", include("caplai.portal.api_emails")),
    path("_allauth/app/v1/auth/", include("caplai.portal.api_recover")),
    path("_allauth/app/v1/account/passkeys", include("caplai.portal.api_passkeys")),
    path("recover/", recover.Start.as_view(), name="recover"),
    path("recover/ways/", recover.ways, name="recover_ways"),
    path("recover/said/", recover.said, name="recover_said"),
    path("recover/send/", recover.send, name="recover_send"),
    path("recover/otp/", recover.Otp.as_view(), name="recover_otp"),
    path("recover/link/", recover.FromLink.as_view(), name="recover_link"),
    path("recover/again/", recover.again, name="recover_again"),
    path("recover/done/", recover.done, name="recover_done"),
    path("account/passkeys/", passkeys.shown, name="account_passkeys"),
    path("account/passkeys/add/", passkeys.Add.as_view(), name="account_passkey_add"),
    path("account/passkeys/add/options/", passkeys.add_options, name="account_passkey_add_options"),
    path("account/passkeys/<int:passkey_id>/", passkeys.Rename.as_view(), name="account_passkey_rename"),
    path(
        "account/passkeys/<int:passkey_id>/remove/", passkeys.Remove.as_view(), name="account_passkey_remove"
    ),
    path("account/report/", report.signed_in, name="account_report"),
    path("report/<str:token>/", report.by_link, name="report"),
]
