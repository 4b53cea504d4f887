"""Runs cases, several at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fix_postgres import Postgres, drop_postgres, make_postgres
from zoo.app import SCHEMA
from zoo.judge import Judge, Result
from zoo.registry import Case
from zoo.run_case import RESULT

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource

AT_ONCE = 8
_ROOT = Path(__file__).resolve().parents[2]
_TOO_LONG_S = 90.0


def run_all(
    cases: Iterable[Case], start_server: Callable[[], Postgres]
) -> dict[str, Future[Result]]:
    """Begin to run cases; ``start_server`` is called if one of them needs it."""
    cases = list(cases)
    server: Postgres | None = None
    if any(case.on_server for case in cases):
        server = start_server()
        _prepare(server)
    executor = ThreadPoolExecutor(AT_ONCE, "zoo")
    futures = {case.name: executor.submit(_run, case, server) for case in cases}
    executor.shutdown(wait=False)
    return futures


def _prepare(server: Postgres) -> None:
    """Make the database of which every case gets a copy."""
    server.execute("CREATE DATABASE zoo")
    home = replace(server, database="zoo")
    for statement in SCHEMA:
        home.execute(statement)


def _url(case: Case, server: Postgres) -> str:
    database = f"zoo_{case.name}"
    server.execute(f"CREATE DATABASE {database} TEMPLATE zoo")
    return replace(server, database=database).url(case.world)


@contextmanager
def postgres_when_needed() -> Iterator[Callable[[], Postgres]]:
    """A server that is started by the first call and gone at the end."""
    started: list[Postgres] = []

    def start() -> Postgres:
        started.append(make_postgres(max_connections=200))
        return started[0]

    try:
        yield start
    finally:
        for server in started:
            drop_postgres(server)


def _run(case: Case, server: Postgres | None) -> Result:
    # short: the path of a Unix socket has room for 107 bytes
    with tempfile.TemporaryDirectory(
        prefix="zoo", dir="/tmp", ignore_cleanup_errors=True
    ) as directory:
        arguments = [case.module, case.name, directory]
        if case.on_server and server is not None:
            arguments.append(_url(case, server))
        environ = {
            **os.environ,
            "POOLWATCH_DIR": f"{directory}/pw",
            "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "tests")]),
            "PYTHONWARNINGS": "ignore",
        }
        with (
            (Path(directory) / "stderr").open("w+b") as stderr,
            subprocess.Popen(
                [sys.executable, "-m", "zoo.run_case", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environ,
                start_new_session=True,
                text=True,
            ) as process,
        ):
            alarm = threading.Timer(_TOO_LONG_S, _kill, [process])
            alarm.start()
            try:
                told = _listen(process)
                result = None
                if next(told, None) == "begun" and case.on_server:
                    result = _watch(case, Path(directory) / "pw")
                    _kill(process)
                last = next(told, None)
            finally:
                alarm.cancel()
                _kill(process)
            if last is not None:
                return Result.from_dict(json.loads(last))
            if result is not None:
                return result
            stderr.seek(0)
            why = stderr.read().decode("utf-8", "replace") or "it gave no answer"
            return Result(case.name, crash=why)


def _listen(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(RESULT):
            yield line.removeprefix(RESULT).strip()


def _watch(case: Case, directory: Path) -> Result:
    source = LiveSource(Client(directory), environ={})
    try:
        return Judge(case).watch(source.snapshot)
    finally:
        source.close()


def _kill(process: subprocess.Popen[str]) -> None:
    """The process and what it has forked; it leads a session of its own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
