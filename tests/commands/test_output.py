"""Output that cannot be written, and signals: no traceback, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import LONG_S, until

FULL = Path("/dev/full")
POOLWATCH = [sys.executable, "-m", "poolwatch"]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["--version", "completion bash"])
def test_a_full_disk(command):
    with FULL.open("w") as full:
        ran = subprocess.run(
            [*POOLWATCH, *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = "poolwatch: cannot write the output: No space left on device\n"
    assert (ran.returncode, ran.stderr) == (2, said)


def test_a_reader_that_has_ended():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        ran = subprocess.run(
            [*POOLWATCH, "ps", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_user_without_a_home(tmp_path):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
    ran = subprocess.run(
        [*POOLWATCH, "history"],
        env={**environ, "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG_S,
    )
    assert (ran.returncode, "set XDG_STATE_HOME" in ran.stderr) == (2, True)
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("output", ["a" * 500, "no directory/x", "."])
def test_a_file_that_cannot_be_written(output, tmp_path):
    ran = subprocess.run(
        [*POOLWATCH, "profile", "--seconds", "0.1", "-o", output],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)


def test_escapes_in_an_argument():
    ran = subprocess.run(
        [*POOLWATCH, "profile", "--seconds", "0.1", "-o", "\x1b[31m/x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "\x1b" not in ran.stderr


INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "poolwatch.commands.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from poolwatch.__main__ import main
sys.exit(main())
"""


def test_interrupted_while_it_is_loading():
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (130, b"")


@pytest.mark.postgres
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_benchmark_that_is_told_to_end(number, tmp_path):
    """Its PostgreSQL ends with it."""
    process = subprocess.Popen(
        [*POOLWATCH, "bench"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    until(lambda: list(tmp_path.glob("poolwatch-*")))
    process.send_signal(number)
    process.communicate(timeout=LONG_S)
    assert list(tmp_path.glob("poolwatch-*")) == []
    ps = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, check=True)
    assert str(tmp_path).encode() not in ps.stdout
