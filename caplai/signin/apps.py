from django.apps import AppConfig


class SigninConfig(AppConfig):
    name = "caplai.signin"
    label = "signin"
