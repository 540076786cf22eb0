"""Columns of a kind of our own."""

from django.db import models


class Text(models.TextField):
    """Text compared byte by byte: codes, phones and names of states need no language's order."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("db_collation", "C")
        super().__init__(*args, **kwargs)

    def db_type(self, connection):
        # So spelt, Django adds no second index for LIKE to each unique one: in the C collation it has no use.
        return "pg_catalog.text"
