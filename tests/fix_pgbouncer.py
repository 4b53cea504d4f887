"""Real PgBouncers in front of the tests' servers, where one is installed.

``start_pgbouncer(server, mode="session", size=2)`` starts one; gone after the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fix_postgres import Postgres
from helpers import until
from serving import free_port

PROGRAM = os.environ.get("PGBOUNCER") or shutil.which(
    "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"
)


@dataclass(frozen=True)
class PgBouncer(Postgres):
    """A server as it is reached through PgBouncer."""

    process: subprocess.Popen[bytes] | None = None

    @property
    def console(self) -> str:
        """The DSN of its console."""
        return replace(self, database="pgbouncer", user="watcher").dsn

    def over_socket(self) -> PgBouncer:
        """The same one, reached by its Unix socket."""
        return replace(self, host=str(self.directory))


def make_pgbouncer(
    server: Postgres, mode: str = "transaction", size: int = 2, **settings: object
) -> PgBouncer:
    """Start one in front of a server; the caller stops it with drop_pgbouncer()."""
    assert PROGRAM is not None
    directory = Path(tempfile.mkdtemp(prefix="pb", dir="/tmp"))
    port = free_port()
    (directory / "users").write_text('"postgres" ""\n"watcher" ""\n')
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": directory,
        "auth_type": "trust",
        "auth_file": directory / "users",
        "stats_users": "watcher",
        "pool_mode": mode,
        "default_pool_size": size,
        **settings,
    }
    lines = [f"{name} = {value}" for name, value in settings.items()]
    target = f"* = host=127.0.0.1 port={server.port}"
    ini = directory / "pgbouncer.ini"
    ini.write_text("\n".join(["[databases]", target, "[pgbouncer]", *lines, ""]))
    user = None
    if os.geteuid() == 0:  # it refuses to run as root
        user = "nobody"
        for path in (directory, *directory.iterdir()):
            shutil.chown(path, user)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, str(ini)], stderr=log, user=user)
    found = PgBouncer(directory, port, "127.0.0.1", server.control, process=process)
    try:
        until(lambda: _answers(found), what="PgBouncer does not answer")
    except BaseException:
        drop_pgbouncer(found)
        raise
    return found


def _answers(bouncer: PgBouncer) -> bool:
    with suppress(Exception):
        bouncer.connect().close()
        return True
    return False


def drop_pgbouncer(bouncer: PgBouncer) -> None:
    """Stop it and remove its directory."""
    assert bouncer.process is not None
    bouncer.process.kill()
    bouncer.process.wait()
    shutil.rmtree(bouncer.directory, ignore_errors=True)


@pytest.fixture
def start_pgbouncer() -> Iterator[Callable[..., PgBouncer]]:
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed")
    started: list[PgBouncer] = []

    def start(server: Postgres, mode: str = "transaction", **more: object) -> PgBouncer:
        started.append(make_pgbouncer(server, mode, **more))
        return started[-1]

    yield start
    for each in started:
        drop_pgbouncer(each)
