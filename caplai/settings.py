"""Django's settings, made from the one configuration (config.py). Everything here is wiring."""

from pathlib import Path
from urllib.parse import urlsplit

from caplai.config import ConfigError, load
from caplai.signin import static_files
from caplai.store.db import django_database
from caplai.watch import logs

CAPLAI = load()
BASE_DIR = Path(__file__).parent

if CAPLAI.database_url is None:
    raise ConfigError("no database: start caplai by its command line, which starts the embedded server")
KEYRING = CAPLAI.open_keyring()
KEYRING.create()
_web = KEYRING.ring("web")
# The web server keeps both up to date as keys are rotated (wsgi.py).
SECRET_KEY = _web.keys[_web.active].hex()
SECRET_KEY_FALLBACKS = [key.hex() for name, key in _web.keys.items() if name != _web.active]

DEBUG = False
HTTPS = (CAPLAI.public_url or "").startswith("https://")
_public = urlsplit(CAPLAI.public_url or "")
_host = _public.hostname or "*"
ALLOWED_HOSTS = [f"[{_host}]" if ":" in _host else _host]  # IPv6 as browsers send it
CSRF_TRUSTED_ORIGINS = [f"{_public.scheme}://{_public.netloc}"] if CAPLAI.public_url else []

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.postgres",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "caplai.portal.oidc",  # before allauth: its templates go first
    "allauth",
    "allauth.account",
    "allauth.headless",
    "allauth.mfa",
    "allauth.idp.oidc",
    "caplai.store",
    "caplai.signin",
    "caplai.portal",
]
MIDDLEWARE = [
    "caplai.health.Probes",
    "caplai.signin.outage.Outage",
    "caplai.signin.middleware.TrustedProxy",
    "caplai.watch.http.Requests",
    "caplai.wiring.aggregators",
    "django.middleware.security.SecurityMiddleware",
    "caplai.signin.static_files.StaticFiles",
    "caplai.portal.oidc.middleware.FormAction",
    "caplai.signin.middleware.Headers",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "caplai.signin.middleware.Language",
    "caplai.portal.oidc.middleware.UiLocales",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
]
ROOT_URLCONF = "caplai.urls"
WSGI_APPLICATION = "caplai.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "signin" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "caplai.signin.context.site",
            ]
        },
    }
]

DATABASES = {"default": django_database(CAPLAI.database_url.get_secret_value())}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "vi"
LANGUAGES = [("vi", "Tiếng Việt"), ("en", "English")]
LOCALE_PATHS = [BASE_DIR / "locale", BASE_DIR / "locale_others"]
TIME_ZONE = "Asia/Ho_Chi_Minh"
USE_TZ = True

STATIC_URL = "/static/"
STORAGES = {"staticfiles": {"BACKEND": "caplai.signin.static_files.HashedNames"}}
WHITENOISE_USE_FINDERS = True
WHITENOISE_ALLOW_ALL_ORIGINS = False
WHITENOISE_ADD_HEADERS_FUNCTION = static_files.headers

# Sign-in.
AUTH_USER_MODEL = "store.Login"
AUTHENTICATION_BACKENDS = ["caplai.signin.backend.PasswordBackend"]
PASSWORD_HASHERS = [
    "caplai.signin.hashers.PepperedArgon2",
    "caplai.signin.hashers.RandomSecret",
    # Only to check what an import took over.
    "caplai.signin.hashers.TakenOverPBKDF2",
    "caplai.signin.hashers.TakenOverArgon2",
    "caplai.signin.hashers.TakenOverBCryptSHA256",
    "caplai.signin.hashers.TakenOverBCrypt",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 8}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/"
ACCOUNT_ADAPTER = "caplai.signin.adapter.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*"]
ACCOUNT_USER_MODEL_EMAIL_FIELD = None
ACCOUNT_EMAIL_VERIFICATION = "none"
# allauth looks names up with __iexact unless they are kept lower-case: 465 ms at 3 million rows, against 0.05.
ACCOUNT_PRESERVE_USERNAME_CASING = False
# Our own guess budgets and throttle (service/credentials.py) replace all of allauth's, which also refuse the
# right password. Nothing else uses a cache.
ACCOUNT_RATE_LIMITS = False
# Passkeys (signin/webauthn.py) are a way in, and no second factor.
MFA_SUPPORTED_TYPES = ["webauthn"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_RATE_LIMITS = False
# What the re-issue needs, for rooms that must not know the wiring.
REISSUE_RULES = "caplai.wiring.web_rules"
# How long choosing a password may take, from the issued one on.
ACCOUNT_LOGIN_TIMEOUT = 3600
HEADLESS_CLIENTS = ("app",)
HEADLESS_ADAPTER = "caplai.signin.adapter.HeadlessAdapter"
HEADLESS_TOKEN_STRATEGY = "caplai.signin.adapter.TokenStrategy"  # noqa: S105
# OpenID Connect (portal/oidc/): no limits of allauth's either, they count in each process for itself.
IDP_OIDC_ADAPTER = "caplai.portal.oidc.adapter.OidcAdapter"
IDP_OIDC_ACCESS_TOKEN_EXPIRES_IN = int(CAPLAI.oidc.access_lifetime.total_seconds())
IDP_OIDC_AUTHORIZATION_CODE_EXPIRES_IN = 60
IDP_OIDC_ROTATE_REFRESH_TOKEN = True
IDP_OIDC_INTROSPECTION_ENABLED = IDP_OIDC_INTROSPECTION_CROSS_CLIENT_ALLOWED = True
IDP_OIDC_RATE_LIMITS = False
CSRF_FAILURE_VIEW = "caplai.signin.views.csrf_failure"

SESSION_ENGINE = "caplai.signin.sessions"
SESSION_COOKIE_AGE = int(CAPLAI.signin.session_age.total_seconds())
SESSION_IDLE = CAPLAI.signin.session_idle
# Over HTTPS no neighbour in the same domain can plant them (RFC 6265bis, 4.1.3.2).
_prefix = "__Host-" if HTTPS else ""
SESSION_COOKIE_NAME = f"{_prefix}caplai_session"
CSRF_COOKIE_NAME = f"{_prefix}csrftoken"
DEVICE_COOKIE_NAME = f"{_prefix}caplai_device"
KEPT_COOKIE_NAME = f"{_prefix}caplai_kept"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = CAPLAI.hsts_subdomains
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

LOGGING = logs.configuration(CAPLAI.log.format, CAPLAI.log.level, messages=CAPLAI.log.messages)
LOGGING["loggers"] |= {
    # A wrong password is an answer (401), no event of the log.
    "django.request": {"level": "ERROR"},
    # It tells the ids of passkeys.
    "fido2": {"level": "WARNING"},
    # Nor is what strangers send: another site's name, bodies too big, forms without their token.
    "django.security": {"level": "CRITICAL"},
    # It would write codes and tokens at level debug.
    "oauthlib": {"level": "ERROR"},
}
