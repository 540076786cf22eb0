"""Sessions in the database that keep no key at rest: a row's key is a hash of the session's.

A session key (a cookie, or the app's X-Session-Token) is as good as a password while it lives. Its 165 random
bits need no salt and no slow hash.
"""

import base64
import hashlib

from asgiref.sync import sync_to_async
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.utils import timezone


class SessionStore(DatabaseStore):
    """Django's database store, looking rows up by the hash of the key."""

    def _get_session_from_db(self):
        row = self.model.objects.filter(
            session_key=_row_key(self.session_key), expire_date__gt=timezone.now()
        ).first()
        if row is None:
            self._session_key = None
        return row

    def exists(self, session_key):
        return self.model.objects.filter(session_key=_row_key(session_key)).exists()

    def create_model_instance(self, data):
        return self.model(
            session_key=_row_key(self._get_or_create_session_key()),
            session_data=self.encode(data),
            expire_date=self.get_expiry_date(),
        )

    def delete(self, session_key=None):
        key = session_key or self.session_key
        if key is not None:
            self.model.objects.filter(session_key=_row_key(key)).delete()

    # Django's own versions of these would store or look for the key itself.
    _aget_session_from_db = sync_to_async(_get_session_from_db)
    aexists = sync_to_async(exists)
    acreate_model_instance = sync_to_async(create_model_instance)
    adelete = sync_to_async(delete)


def _row_key(session_key: str) -> str:
    """40 characters, as Django's table has them: 240 bits of the SHA-256."""
    digest = hashlib.sha256(session_key.encode("utf-8", "surrogatepass")).digest()
    return base64.urlsafe_b64encode(digest[:30]).decode()
