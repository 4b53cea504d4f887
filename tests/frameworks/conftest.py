"""Serves the applications of ``apps/``, each in processes of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import until
from serving import APPS, free_port, knock, seen


class Served:
    """An application that answers on a port, and what is seen of it from outside."""

    def __init__(self, port: int, postgres: Any, threads: ThreadPoolExecutor) -> None:
        self.port = port
        self._threads = threads
        self._postgres = postgres

    def get(self, path: str = "/") -> str:
        answer = knock(self.port, path)
        assert answer, f"{path}: no answer"
        return answer.decode()

    def begin(self, *paths: str) -> list[Any]:
        """Requests that stay open until the application ends them."""
        return [self._threads.submit(self.get, path) for path in paths]

    def holds(self) -> list[Any]:
        return [hold for process in seen() for hold in process["holds"]]

    def held(self, count: int) -> list[Any]:
        """Exactly so many holds, as soon as there are."""

        def all_there() -> list[Any] | None:
            holds = self.holds()
            return holds if len(holds) == count else None

        return until(all_there)

    def findings(self) -> list[Any]:
        return [found for process in seen() for found in process["findings"]]

    def finding(self, *kinds: str) -> Any:
        """The first finding of one of these kinds, as soon as there is one."""

        def one() -> Any:
            return next((f for f in self.findings() if f["kind"] in kinds), None)

        return until(one)

    def in_transaction(self) -> list[int]:
        """The holds whose transaction waits for its next statement."""
        return [
            hold["id"]
            for hold in self.holds()
            if hold["server"] and hold["server"]["state"] == "idle in transaction"
        ]

    def quiet(self) -> bool:
        """Nothing is out, and nothing is said to be wrong."""
        return not any(p["holds"] or p["findings"] for p in seen())


@pytest.fixture
def start(
    postgres: Any, socket_dir: Path, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a program among the applications, and ends it with its children."""
    started: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "log").open("ab")  # shown by nobody, read in trouble

    def begin(
        *command: object, driver: str = "psycopg2", **environ: str
    ) -> subprocess.Popen[bytes]:
        words = [str(word) for word in command]
        how = [] if words[0].endswith(".py") else ["-m"]
        program = subprocess.Popen(
            [sys.executable, *how, *words],
            cwd=APPS,
            env={
                **os.environ,
                "SHOP_DATABASE": postgres.url(driver),
                "PYTHONDONTWRITEBYTECODE": "1",
                **environ,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(program)
        return program

    yield begin
    for program in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
    log.close()


@pytest.fixture
def serve(start: Callable[..., Any], postgres: Any) -> Iterator[Callable[..., Served]]:
    """Starts a server and waits for its first answer."""
    threads = ThreadPoolExecutor(8)

    def serving(*command: object, **settings: str) -> Served:
        port = free_port()
        words = [str(word).replace("{port}", str(port)) for word in command]
        program = start(*words, **settings)
        until(lambda: knock(port) or program.poll() is not None, 120)
        assert program.poll() is None, "the server has ended"
        return Served(port, postgres, threads)

    yield serving
    threads.shutdown(wait=False, cancel_futures=True)  # their server is ended next
