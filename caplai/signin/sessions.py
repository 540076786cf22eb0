"""Sessions in the database that keep no key at rest: a row's key is a hash of the session's.

A session key (a cookie, or the app's X-Session-Token) is as good as a password while it lives. Its 168 random
bits need no salt and no slow hash.
"""

import base64
import hashlib
import secrets

from asgiref.sync import sync_to_async
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.utils import timezone

from caplai.store import db

_INSERT = "insert into django_session (session_data, expire_date, session_key) values (%s, %s, %s)"
_UPDATE = "update django_session set session_data = %s, expire_date = %s where session_key = %s returning 1"


class SessionStore(DatabaseStore):
    """Django's database store, looking rows up by the hash of the key, and writing one once where Django's writes it
    at its creation, too.
    """

    _is_new = False
    """The key has no row yet."""
    _written = b""
    """What this object has written to it: a sign-in saves its session before the middleware would."""

    def _get_new_session_key(self):
        """168 random bits, which nobody has: there is no need to ask the database."""
        return base64.b32encode(secrets.token_bytes(21)).decode().rstrip("=").lower()

    def _get_session_from_db(self):
        row = self.model.objects.filter(
            session_key=_row_key(self.session_key), expire_date__gt=timezone.now()
        ).first()
        if row is None:
            self._session_key = None
        return row

    def exists(self, session_key):
        return self.model.objects.filter(session_key=_row_key(session_key)).exists()

    def create(self):
        """A new key; its row is written when the session is saved, with all that is in it by then."""
        self._session_key = self._get_new_session_key()
        self._is_new, self._written = True, b""
        self.modified = True

    def save(self, must_create=False):
        if self.session_key is None:
            self.create()
        content = self._get_session(no_load=self._is_new)
        written = self.serializer().dumps(content)
        if written == self._written:
            return
        row = [self.encode(content), self.get_expiry_date(), _row_key(self.session_key)]
        if self._is_new:
            db.execute(_INSERT, row)
            self._is_new = False
        elif db.execute(_UPDATE, row).fetchone() is None:
            raise UpdateError
        self._written = written

    def delete(self, session_key=None):
        key = session_key or self.session_key
        if key is not None and not (self._is_new and key == self.session_key):
            self.model.objects.filter(session_key=_row_key(key)).delete()

    # Django's own versions of these would store or look for the key itself.
    _aget_session_from_db = sync_to_async(_get_session_from_db)
    aexists = sync_to_async(exists)
    acreate = sync_to_async(create)
    asave = sync_to_async(save)
    adelete = sync_to_async(delete)


def _row_key(session_key: str) -> str:
    """40 characters, as Django's table has them: 240 bits of the SHA-256."""
    digest = hashlib.sha256(session_key.encode("utf-8", "surrogatepass")).digest()
    return base64.urlsafe_b64encode(digest[:30]).decode()
