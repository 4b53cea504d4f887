"""Runs cases, several at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Self

from fix_postgres import Postgres, drop_postgres, make_postgres
from zoo.app import SCHEMA
from zoo.judge import Judge, Result
from zoo.registry import Case
from zoo.run_case import RESULT

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource

AT_ONCE = 4
_ROOT = Path(__file__).resolve().parents[2]
_TOO_LONG_S = 90.0


@contextmanager
def running(cases: Iterable[Case]) -> Iterator[Callable[[Case], Future[Result]]]:
    """Yield a function that begins one of ``cases`` in a process of its own, once.

    Those that have not begun at the end are cancelled.
    """
    with ExitStack() as stack:
        server: Postgres | None = None
        if any(case.on_server for case in cases):
            server = make_postgres(max_connections=200)
            stack.callback(drop_postgres, server)
            _prepare(server)
        launcher = stack.enter_context(_Launcher())
        executor = ThreadPoolExecutor(AT_ONCE, "zoo")
        stack.callback(executor.shutdown, cancel_futures=True)
        futures: dict[str, Future[Result]] = {}

        def begin(case: Case) -> Future[Result]:
            if case.name not in futures:
                futures[case.name] = executor.submit(_run, case, launcher, server)
            return futures[case.name]

        yield begin


def _prepare(server: Postgres) -> None:
    """Make the database of which every case gets a copy."""
    server.execute("CREATE DATABASE zoo")
    home = replace(server, database="zoo")
    for statement in SCHEMA:
        home.execute(statement)


class _Launcher:
    """Forks the processes of cases from one that has imported what they need."""

    def __init__(self) -> None:
        # a message is a list of arguments, and comes with a standard output and error
        self._requests, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )
        self._lock = threading.Lock()
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "tests")]),
            "PYTHONWARNINGS": "ignore",
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zoo.run_case", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environ,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()
        self._process.wait()

    def start(self, arguments: list[str], stdout: int, stderr: int) -> int:
        """Start a process that leads a session of its own; returns its pid."""
        message = json.dumps(arguments).encode()
        with self._lock:
            socket.send_fds(self._requests, [message], [stdout, stderr])
            return int(self._requests.recv(100))


def _run(case: Case, launcher: _Launcher, server: Postgres | None) -> Result:
    # short: the path of a Unix socket has room for 107 bytes
    with tempfile.TemporaryDirectory(
        prefix="zoo", dir="/tmp", ignore_cleanup_errors=True
    ) as directory:
        arguments = [case.module, case.name, directory]
        if not case.on_server or server is None:
            return _run_in(case, launcher, arguments)
        database = f"zoo_{case.name}"
        server.execute(f"CREATE DATABASE {database} TEMPLATE zoo")
        url = replace(server, database=database).url(case.world)
        try:
            return _run_in(case, launcher, [*arguments, url])
        finally:
            server.execute(f"DROP DATABASE {database} WITH (FORCE)")


def _run_in(case: Case, launcher: _Launcher, arguments: list[str]) -> Result:
    directory = Path(arguments[2])
    reading, writing = os.pipe()
    with (directory / "stderr").open("w+b") as stderr, os.fdopen(reading) as output:
        try:
            pid = launcher.start(arguments, writing, stderr.fileno())
        finally:
            os.close(writing)
        alarm = threading.Timer(_TOO_LONG_S, _kill, [pid])
        alarm.start()
        try:
            said = _listen(output)
            result = None
            if next(said, None) == "begun" and case.on_server:
                result = _watch(case, directory / "pw")
                _kill(pid)
            last = next(said, None)
        finally:
            alarm.cancel()
            _kill(pid)
        if last is not None:
            return Result.from_dict(json.loads(last))
        if result is not None:
            return result
        stderr.seek(0)
        why = stderr.read().decode("utf-8", "replace") or "it gave no answer"
        return Result(case.name, crash=why)


def _listen(output: IO[str]) -> Iterator[str]:
    for line in output:
        if line.startswith(RESULT):
            yield line.removeprefix(RESULT).strip()


def _watch(case: Case, directory: Path) -> Result:
    source = LiveSource(Client(directory), environ={})
    try:
        return Judge(case).watch(source.snapshot)
    finally:
        source.close()


def _kill(pid: int) -> None:
    """The process and what it has forked; it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
