"""A pytest plugin, loaded before Django's settings: one embedded PostgreSQL for the whole run.

CAPLAI_PG_BIN chooses the server's programs (CI runs the suite once with Debian's PostgreSQL 15).
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from caplai.local_postgres import LocalPostgres

for _name in [name for name in os.environ if name.startswith("CAPLAI_") and name != "CAPLAI_PG_BIN"]:
    del os.environ[_name]  # a developer's own settings are no part of the tests

folder = Path(tempfile.mkdtemp(prefix="caplai-test-"))
_server = LocalPostgres(folder / "postgres", pg_bin=os.environ.get("CAPLAI_PG_BIN"), fast=True)
os.environ["CAPLAI_DATABASE_URL"] = _server.ensure_running().dsn
os.environ["CAPLAI_DATA_DIR"] = str(folder)
os.environ["CAPLAI_CONFIG"] = str(folder / "caplai.toml")
(folder / "caplai.toml").write_text("")


@atexit.register
def _stop() -> None:
    _server.stop()
    shutil.rmtree(folder, ignore_errors=True)
