"""A site to measure: the embedded PostgreSQL with fsync on, people who chose a password, and `caplai web`."""

import os
from pathlib import Path

import psycopg

from bench._load import add_accounts
from bench._parts import Part, plain_environment
from bench._proc import Tree
from caplai import processes
from caplai.local_postgres import LocalPostgres

PASSWORD = "mot mat khau rieng"
"""What everybody has chosen."""

_LOGINS = """
insert into login (username, account_id, password, is_active, is_staff, is_superuser, stamp)
select code, code, %s, true, false, false, md5(code) from account where code < %s
"""


class Site:
    """`with Site(folder, accounts=…, logins=…) as site:` the first `logins` accounts have PASSWORD.

    `before` stands in front of the web server's command; `settings` are more of its CAPLAI_* variables.
    """

    def __init__(
        self, folder: Path, *, accounts: int, logins: int, settings: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._accounts, self._logins = accounts, logins
        self._settings = settings or {}
        self._server = LocalPostgres(folder / "postgres")

    def __enter__(self) -> "Site":
        running = self._server.ensure_running()
        try:
            self.dsn = running.dsn
            self.database = Tree(running.pid)
            self._fill()
            self.port = processes.free_port("127.0.0.1", 0)
            self.environment = {
                **plain_environment(),
                "CAPLAI_DATABASE_URL": self.dsn,
                "CAPLAI_DATA_DIR": str(self.folder),
                "CAPLAI_PORT": str(self.port),
                "CAPLAI_WATCH__WEB_PORT": "0",
                "CAPLAI_WATCH__ENGINE_PORT": "0",
                # All people come from one address here.
                "CAPLAI_SIGNIN__NETWORK_FAILURES": "1000000",
                "CAPLAI_SIGNIN__SITE_FAILURES": "1000000",
                "CAPLAI_SIGNIN__SITE_FAILURES_MINUTE": "1000000",
                **self._settings,
            }
            self.web = Part("web", ["web"], self.environment, self.folder)
            self.web_tree = Tree(self.web.process.pid)
            if not processes.wait_for_port("127.0.0.1", self.port, 30):
                raise RuntimeError(f"the web server does not come up:\n{self.web.says()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "web"):
            self.web.stop()
        self._server.stop()

    def _fill(self) -> None:
        os.environ |= {"CAPLAI_DATABASE_URL": self.dsn, "CAPLAI_DATA_DIR": str(self.folder)}
        processes.setup_django()
        processes.migrate()
        from django.contrib.auth.hashers import make_password

        add_accounts(self.dsn, self._accounts)
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            # One hash for all: to check it costs each of them the same.
            conn.execute(_LOGINS, [make_password(PASSWORD), f"{self._logins:010}"])
            conn.execute("vacuum analyze")
            conn.execute("checkpoint")
