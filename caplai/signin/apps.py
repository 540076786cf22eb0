from django.apps import AppConfig
from django.contrib.auth.signals import user_logged_in


class SigninConfig(AppConfig):
    name = "caplai.signin"
    label = "signin"

    def ready(self) -> None:
        # `signed_in` (service/credentials.py) writes it, in the transaction that closes the sign-in.
        user_logged_in.disconnect(dispatch_uid="update_last_login")
