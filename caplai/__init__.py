"""caplai gives people back the password of their public-service account."""

__version__ = "0.1.0"
