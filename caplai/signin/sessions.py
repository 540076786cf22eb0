"""Sessions in the database that keep no key at rest: a row's key is a hash of the session's.

A session key (a cookie, or the app's X-Session-Token) is as good as a password while it lives. Its 168 random
bits need no salt and no slow hash.

A sign-in ends at a time of its own (`signin.session_age`), and before it when nobody uses it for `signin.session_idle`:
the row's time of expiry is whichever comes first, and use moves it on, a few times an hour at most.
"""

import base64
import hashlib
import secrets
from datetime import UTC, datetime, timedelta

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.utils import timezone

from caplai.service import sittings
from caplai.store import db

_INSERT = "insert into django_session (session_data, expire_date, session_key) values (%s, %s, %s)"
_ENDS = "ends"
"""In the session of somebody signed in: when it is over however much it is used, in seconds since 1970."""
_TOLD_AGAIN = timedelta(minutes=15)
"""Use within this time of the use that was last written down is not written: most requests write nothing."""
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

    def load(self):
        row = self._get_session_from_db()
        if row is None:
            return {}
        content = self.decode(row.session_data)
        if SESSION_KEY in content and _ENDS in content:
            until = _until(content)
            if until - row.expire_date >= min(_TOLD_AGAIN, settings.SESSION_IDLE / 4):
                sittings.keep(row.session_key, until)
        return content

    def cycle_key(self):
        """Another key, the same content; where somebody is signed in it stays the same sitting."""
        content, was = self._session, self.session_key
        self.create()
        self._session_cache = content
        if was:
            if SESSION_KEY in content:
                sittings.moved(_row_key(was), _row_key(self.session_key))
            self.delete(was)

    @property
    def row_key(self) -> str:
        """The key of this session's row, as sittings know it."""
        return _row_key(self.session_key or "")

    def create(self):
        """A new key; its row is written when the session is saved, with all that is in it by then."""
        self._session_key = self._get_new_session_key()
        self._is_new, self._written = True, b""
        self.modified = True

    def save(self, must_create=False):
        if self.session_key is None:
            self.create()
        content = self._get_session(no_load=self._is_new)
        expires = timezone.now() + timedelta(seconds=self.get_session_cookie_age())
        if SESSION_KEY in content:
            content.setdefault(_ENDS, expires.timestamp())
            expires = _until(content)
        written = self.serializer().dumps(content)
        if written == self._written:
            return
        row = [self.encode(content), expires, _row_key(self.session_key)]
        if self._is_new:
            db.execute(_INSERT, row)
            self._is_new = False
        elif db.execute(_UPDATE, row).fetchone() is None:
            raise UpdateError
        self._written = written

    def delete(self, session_key=None):
        key = session_key or self.session_key
        if key is not None and not (self._is_new and key == self.session_key):
            sittings.left(_row_key(key))

    # Django's own versions of these would store or look for the key itself.
    _aget_session_from_db = sync_to_async(_get_session_from_db)
    aexists = sync_to_async(exists)
    aload = sync_to_async(load)
    acycle_key = sync_to_async(cycle_key)
    acreate = sync_to_async(create)
    asave = sync_to_async(save)
    adelete = sync_to_async(delete)


def _row_key(session_key: str) -> str:
    """40 characters, as Django's table has them: 240 bits of the SHA-256."""
    digest = hashlib.sha256(session_key.encode("utf-8", "surrogatepass")).digest()
    return base64.urlsafe_b64encode(digest[:30]).decode()


def _until(content: dict) -> datetime:
    """When the row of somebody who is signed in, and was just here, expires."""
    ends = datetime.fromtimestamp(content[_ENDS], UTC)
    return min(ends, timezone.now() + settings.SESSION_IDLE)
