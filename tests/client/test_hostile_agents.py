"""A socket of somebody else, or of a process that has gone mad: one sentence each."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
from fix_core import null_pool_of
from helpers import until

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.commands.ps_table import Style, render

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
OK = b"HTTP/1.1 200 OK\r\n"


def body(text, kind=b""):
    return OK + b"Content-Length: %d\r\n%s\r\n" % (len(text), kind) + text


def deep(levels):
    """A document with so many lists in each other where a process should be."""
    return b'{"schema": 1, "processes": [{"pid": %s' % (b"[" * levels + b"]" * levels)


ANSWERS = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\x00\x1b]0;x\x07",
    "no header": b"\x00" * 70_000,
    "a long header": OK + b"X: " + b"x" * 70_000,
    "many headers": OK + b"X: x\r\n" * 200 + b"\r\n",
    "no number": OK + b"Content-Length: \x1b[2J\r\n\r\n{}",
    "a negative length": OK + b"Content-Length: -5\r\n\r\n{}",
    "cut short": OK + b'Content-Length: 999999\r\n\r\n{"schema": 1',
    "bad chunks": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\x1b\r\n{}",
    "terminal escapes": b"HTTP/1.1 500 \x1b]0;x\x07\x9b31m\xe2\x80\xae" + b"x" * 999,
    "other text": body("{}".encode("utf-16")),
    "no text": body(b"\xff\xfe\x00{"),
    "a schema of escapes": body(b'{"schema": "\\u001b[2J\\u202e\\ud800", "x": 1}'),
    "deep": body(deep(100_000) + b"}]}"),
    "deep, but read": body(deep(900) + b"}]}"),
    "many lists": body(b'{"schema": 1, "x": [' + b"[]," * 5_000_000 + b"1]}"),
    "too long": OK + b"\r\n" + b" " * (70 << 20),
}


@contextmanager
def answering(directory, answer, *, slowly=False):
    """An agent that gives this answer to every request."""
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind(str(directory / f"{os.getpid()}-00ff.sock"))
        ear.listen(8)

        def serve():
            with suppress(OSError):
                while True:
                    connection, _ = ear.accept()
                    with connection, suppress(OSError):
                        if connection.recv(4096):  # a probe says nothing
                            connection.sendall(answer)
                        while slowly and not over.wait(0.02):
                            connection.sendall(b"x")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        over.set()
        ear.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def lost(directory, patience_s):
    """What is said of the one process there."""
    seen = LiveSource(Client(directory), patience_s=patience_s).snapshot()
    (one,) = seen.unreachable
    assert seen.processes == ()
    assert not CONTROLS.search(one.why.replace("\ud800", "?"))
    assert not CONTROLS.search(render(seen, Style(120)).replace("\n", ""))
    return one.why


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_none(socket_dir, answer):
    with answering(socket_dir, ANSWERS[answer]):
        why = lost(socket_dir, 30.0)
    assert why
    assert len(why) < 200


def test_an_answer_that_never_ends(socket_dir):
    with answering(socket_dir, OK + b"\r\n", slowly=True):
        assert lost(socket_dir, 0.3) == "it is alive and does not answer"


AS_STRANGER = """
import contextlib, io, os, sys
from poolwatch.commands.main import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["ps"])  # loads what it needs
os.setgid(65534); os.setuid(65534)
sys.exit(main(["ps"]))
"""


@pytest.mark.processes
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("directory", "socket_mode", "code", "words"),
    [
        (0o700, 0o600, 4, "no permission to read"),
        (0o755, 0o666, 0, "the connection broke"),
    ],
)
def test_a_stranger_learns_nothing(
    instrument, socket_dir, directory, socket_mode, code, words
):
    pool = null_pool_of()
    instrument(pool, name="orders")
    held = pool.connect()
    path = until(lambda: next(socket_dir.iterdir(), None))
    path.chmod(socket_mode)
    socket_dir.chmod(directory)
    done = subprocess.run(
        [sys.executable, "-c", AS_STRANGER], capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert (done.returncode, "Traceback" in said, "orders" in said) == (code, 0, 0)
    assert words in " ".join(said.split())
    held.close()
