"""What a WSGI server loads."""

import gc
import multiprocessing
import os
import sys
from types import ModuleType

from caplai.prctl import end_with

_server = multiprocessing.parent_process()
if _server is not None and _server.pid is not None:
    # We are granian's worker, and hold its port: it must not be held by whom nobody tends.
    end_with(_server.pid)

# ruff: noqa: E402
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "caplai.settings")
application = get_wsgi_application()  # loads Django, which the rest of ours needs to be imported

from django.conf import settings
from django.urls import get_resolver

from caplai import __version__
from caplai.health import watch_the_web
from caplai.processes import keep_memory_private
from caplai.service.presence import Presence
from caplai.signin.middleware import Utf8Request
from caplai.wiring import start_mail

application.request_class = Utf8Request
keep_memory_private(settings.CAPLAI)


def _sign_with_the_keyring() -> None:
    """Django asks for both at each signing. First what is believed, then what is written: whatever anybody may
    have signed by now, we believe it.
    """
    web = settings.KEYRING.ring("web")
    settings.SECRET_KEY_FALLBACKS = [key.hex() for key in web.keys.values()]
    settings.SECRET_KEY = web.keys[web.active].hex()


presence = Presence(
    "web",
    __version__,
    settings.KEYRING,
    lead=settings.CAPLAI.keys.lead,
    silence=settings.CAPLAI.keys.silence,
    heed=_sign_with_the_keyring,
)
presence.start()
start_mail()
watch_the_web()

# allauth imports it for clients that describe themselves by a page on the web: that is off (CIMD_ENABLED), and we ask
# no other site for anything. Its hundred modules would be 5 MB of this process. (Traces need them: then they are here.)
sys.modules.setdefault("requests", ModuleType("requests"))
get_resolver().url_patterns  # noqa: B018 - what the pages need is loaded now, not by whoever comes first
gc.collect()
gc.freeze()  # all of it stays, so there is no use in looking through it again and again
