"""The processes of cases: ``python -m zoo.run_case DESCRIPTOR``.

A process that has imported what they need forks one for each request that comes over
the socket: the arguments of ``main``, with a standard output and a standard error.

With SQLite a thread of this process looks at it and its last line on stdout is the
result. With PostgreSQL (URL) the parent looks at it, as a viewer does, and kills it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, text
from zoo.app import SCHEMA
from zoo.judge import Judge, Result
from zoo.registry import ASYNC, Case, load

import poolwatch

RESULT = "zoo: "
"""Begins the line of stdout that matters."""


PREPARED = (
    "psycopg2",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.ext.asyncio",
    "poolwatch.adapters.sqlalchemy.hooks",
    "poolwatch.agent.instrument",
    "poolwatch.agent.recording",
)
"""Imported once: nearly every case needs them."""


class World:
    """What a program of the zoo runs in; ``zoo`` is its name inside the cases."""

    def __init__(self, case: Case, directory: Path, url: str | None) -> None:
        self._case = case
        self._url = url
        self._file = directory / "app.db"
        self.long_after = case.long_after
        self._engine: Any = None
        self._making = threading.Lock()
        if url is None:
            with sqlite3.connect(self._file) as connection:
                for statement in SCHEMA:
                    connection.execute(statement)
            connection.close()

    @property
    def engine(self) -> Any:
        """The engine of the application; threads may ask for it at once."""
        with self._making:
            if self._engine is None:
                self._engine = self.new_engine("app")
        return self._engine

    def new_engine(self, name: str, **settings: Any) -> Any:
        """One more engine on the same database, instrumented as well."""
        case = self._case
        settings = {**case.pool, **settings}
        if case.world not in ASYNC:
            engine: Any = create_engine(self.url, **settings)
        else:
            from sqlalchemy.ext.asyncio import create_async_engine

            url = self.url.replace("sqlite:", "sqlite+aiosqlite:")
            engine = create_async_engine(url, **settings)
        if self._url is None:
            event.listen(getattr(engine, "sync_engine", engine), "connect", _pg_sleep)
        poolwatch.instrument(engine, name=name, long_after=case.long_after)
        return engine

    @property
    def url(self) -> str:
        """The database, for an engine that the case makes itself."""
        return self._url or f"sqlite:///{self._file}"

    def watch_everything(self) -> None:
        """Instrument every pool where it is made, as ``poolwatch run`` does."""
        poolwatch.instrument(long_after=self._case.long_after)

    def go_on(self) -> None:
        """The main loop of the application, busy with other things from here on."""
        while True:
            time.sleep(0.02)

    @cached_property
    def slow_url(self) -> str:
        """A web service that takes its time."""
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Slow(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(30)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    def dba(self, sql: str) -> None:
        """Somebody else runs a statement on the server, in another process."""
        script = (
            "import sys, psycopg2; c = psycopg2.connect(sys.argv[1]);"
            "c.autocommit = True; c.cursor().execute(sys.argv[2]); c.close()"
        )
        assert self._url is not None
        dsn = self._url.replace(self._url.partition("://")[0], "postgresql")
        subprocess.run([sys.executable, "-c", script, dsn, sql], check=True)

    @property
    def file(self) -> Path | None:
        """The database of a case without a server."""
        return self._file if self._url is None else None

    @property
    def dsn(self) -> str:
        """The database, in the words of a driver."""
        assert self._url is not None
        return self._url.replace(self._url.partition("://")[0], "postgresql")


def _pg_sleep(connection: Any, record: object) -> None:
    connection.create_function("pg_sleep", 1, time.sleep)


def run(case: Case, world: World) -> None:
    """Run the case's program; it may end, the process goes on."""
    if inspect.iscoroutinefunction(case.run):
        asyncio.run(_run_async(case, world))
    else:
        case.run(world)
        world.go_on()


async def _run_async(case: Case, world: World) -> None:
    await case.run(world)
    while True:  # noqa: ASYNC110 - the application is busy with other things
        await asyncio.sleep(0.02)


def tell(result: Result) -> None:
    """Give the result to the parent and end, whatever still runs."""
    print(RESULT + json.dumps(result.to_dict()), flush=True)
    os._exit(0)


def main(module: str, name: str, directory: str, url: str | None = None) -> None:
    """Run one case."""
    os.environ["POOLWATCH_DIR"] = f"{directory}/pw"
    case = load(module)[name]
    world = World(case, Path(directory), url)
    print(RESULT + "begun", flush=True)
    if url is None:
        judge = Judge(case)
        threading.Thread(
            target=lambda: tell(judge.watch(poolwatch.snapshot)),
            name="viewer",
            daemon=True,
        ).start()
    try:
        run(case, world)
    except BaseException:
        tell(Result(name, crash=traceback.format_exc()))


def forked(requests: socket.socket) -> list[str]:
    """Fork a process for each request; returns in those, with the arguments.

    So their stacks begin as they would in a process of their own.
    """
    for name in PREPARED:
        import_module(name)
    with create_engine("sqlite://").connect() as connection:
        connection.execute(text("SELECT 1"))  # what is slow the first time
    poolwatch.snapshot()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a case has ended
    while True:
        message, outputs, _, _ = socket.recv_fds(requests, 65536, 2)
        if not message:
            sys.exit()
        if os.fork() == 0:
            break
        for output in outputs:
            os.close(output)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for standard, output in zip((1, 2), outputs, strict=True):
        os.dup2(output, standard)
        os.close(output)
    requests.send(str(os.getpid()).encode())
    requests.close()
    arguments: list[str] = json.loads(message)
    return arguments


if __name__ == "__main__":
    main(*forked(socket.socket(fileno=int(sys.argv[1]))))
