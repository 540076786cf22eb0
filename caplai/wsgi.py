"""What a WSGI server loads."""

import multiprocessing
import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from caplai.processes import end_with, keep_memory_private

_server = multiprocessing.parent_process()
if _server is not None and _server.pid is not None:
    # We are granian's worker, and hold its port: it must not be held by whom nobody tends.
    end_with(_server.pid)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "caplai.settings")
application = get_wsgi_application()
keep_memory_private(settings.CAPLAI)
