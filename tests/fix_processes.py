"""Other applications as real child processes, and the viewers of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import LONG_S, line_of, until

ROOT = Path(__file__).parent.parent


class Apps:
    """Starts programs with poolwatch on their path, and runs viewers."""

    def __init__(self, directory: Path, home: Path) -> None:
        self.directory = directory
        self.home = home
        self.running: list[subprocess.Popen[str]] = []
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
            "POOLWATCH_DIR": str(directory),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
        }

    def write(self, source: str, name: str = "app.py") -> Path:
        path = self.home / name
        path.write_text(textwrap.dedent(source))
        return path

    def start(self, source: str, name: str = "app.py", *args: str) -> Any:
        """Start a program; returns when it has printed ``ready``."""
        command = [sys.executable, str(self.write(source, name)), *args]
        app = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environ,
            cwd=self.home,
        )
        self.running.append(app)
        assert app.stdout is not None
        assert app.stdout.readline().strip() == "ready", "it ended early"
        return app

    def finish(self, app: Any) -> int:
        """Close its input and wait for its end."""
        app.stdin.close()
        return int(app.wait(LONG_S))

    def run(self, source: str, name: str = "app.py") -> Any:
        """Run a program to its end."""
        return self._run([sys.executable, str(self.write(source, name))])

    def poolwatch(self, *args: str, **environ: str) -> Any:
        """Run the command line."""
        return self._run([sys.executable, "-m", "poolwatch", *args], **environ)

    def _run(self, command: list[str], **environ: str) -> Any:
        return subprocess.run(
            command,
            capture_output=True,
            check=False,
            text=True,
            timeout=2 * LONG_S,
            env={**self.environ, **environ},
            cwd=self.home,
        )

    def ps(self, *args: str) -> Any:
        """The document of ``ps --json``."""
        done = self.poolwatch("ps", "--json", *args)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def line(self, marker: str, name: str = "app.py") -> int:
        """The number of the line that ends with ``# <marker>``."""
        return line_of(self.home / name, marker)


def first_process_in(container: subprocess.Popen[Any]) -> int:
    """The pid here of the process that is 1 in a container made by unshare."""
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
    return int(until(children.read_text).split()[0])


@pytest.fixture
def apps(socket_dir: Path, tmp_path: Path) -> Iterator[Apps]:
    found = Apps(socket_dir, tmp_path)
    yield found
    for app in found.running:
        for stream in (app.stdin, app.stdout):
            stream.close()
        app.kill()
        app.wait()


@pytest.fixture
def http_get() -> Callable[..., tuple[int, bytes]]:
    """``http_get(path, "/snapshot")`` over a Unix socket: status and body."""
    import http.client
    import socket

    def get(path: Path, target: str, method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("poolwatch", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))  # waits for a place in a full backlog
        connection.sock.settimeout(10)
        try:
            connection.request(method, target)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    return get
