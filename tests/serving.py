"""For tests of served programs: a port, requests, and the output of ``ps``."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers import line_of

POOLWATCH = [sys.executable, "-m", "poolwatch"]
SCRIPTS = Path(sys.executable).parent
APPS = Path(__file__).parent / "frameworks" / "apps"


def seen() -> list[Any]:
    """The processes that ``poolwatch ps`` shows; none if it finds none."""
    done = subprocess.run(
        [*POOLWATCH, "ps", "--json"], capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout)["processes"] if done.returncode == 0 else []


def free_port() -> int:
    """A port below the range of outgoing connections: none of them can take it before
    the server does."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def knock(port: int, path: str = "/") -> bytes:
    """The body of the response; empty while no server listens."""
    try:
        url = f"http://127.0.0.1:{port}{path}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{path}: {error.code} {error.read()!r}") from None
    except OSError:
        return b""


def place(file: str, marker: str, function: str) -> tuple[str, int, str]:
    """File, line and function of a marked line of an application, as in places()."""
    return file, line_of(APPS / file, marker), function


def places(rows: list[Any]) -> set[tuple[str, int, str]]:
    """File, line and function of each site."""
    return {
        (Path(row["file"]).name, row["line"], row["function"])
        for row in rows
        if row is not None
    }
