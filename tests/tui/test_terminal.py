"""A real run in a pseudo terminal: what reaches it, byte by byte."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte
import pytest
from screens import shown

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
PROGRAM = """
from fakes import FakeSource, finding, hold, process, server_row, snapshot
from poolwatch.tui import run
bad = "[/b] \\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202e 漢字 \\ud800"
row = server_row("active", query=bad + "x" * 1_000_000)
holds = [hold(f"h{n}", thread=bad, labels={"l": bad}, server=row, backend_pid=n,
              statement=bad, held_s=float(n)) for n in range(30)]
run(FakeSource(snapshot(process(*holds, name=bad, findings=(finding(text=bad),)))),
    on_close=lambda: print("closed"))
"""


class Terminal:
    def __init__(self, width: int, height: int, **env: str) -> None:
        self.screen = pyte.Screen(width, height)
        self.stream = pyte.Stream(self.screen)
        self.raw = b""
        master, slave = pty.openpty()
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": path, **env},
            start_new_session=True,
        )
        os.close(slave)
        self.master = master

    def read_until(self, wanted: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while wanted not in shown(self.screen):
            assert time.monotonic() < end, shown(self.screen)
            self.read()

    def read(self) -> bool:
        if not select.select([self.master], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.raw += data
        self.stream.feed(data.decode("utf-8", "replace"))
        return bool(data)

    def close(self) -> int:
        end = time.monotonic() + 30
        while self.read() and time.monotonic() < end:
            pass
        os.close(self.master)
        return self.process.wait(30)


@pytest.fixture
def terminal(width, height, env):
    opened = Terminal(width, height, **env)
    yield opened
    if opened.process.poll() is None:  # the test has failed: leave nothing running
        opened.process.kill()
        opened.process.wait()


@pytest.mark.parametrize(
    ("width", "height", "env"),
    [(160, 45, {}), (80, 24, {}), (80, 24, {"NO_COLOR": "1"})],
)
def test_no_control_character_of_a_statement_reaches_the_terminal(terminal):
    terminal.read_until("HOLDS 30")
    os.write(terminal.master, b"j")
    os.write(terminal.master, b"\r")
    terminal.read_until("esc back")  # of the detail, nowhere else
    os.write(terminal.master, b"q")
    terminal.read_until("HOLDS 30")
    os.write(terminal.master, b"q")
    assert terminal.close() == 0
    written = terminal.raw.decode("utf-8")
    assert "]0;owned\x07" not in written
    assert "\x9b" not in written
    assert "\u202e" not in written
    assert "closed" in written
    ours = re.sub(
        r"\x1b(?:\]22;[a-z-]*\x07|\[[0-9;:<=>?]*[ -/]*[@-~]|[@-Z\\-_=>()][0-9A-B]?)",
        "",
        written,
    )
    assert not set(ours) & set(map(chr, range(32))) - set("\r\n\x1b")
    assert terminal.screen.title != "owned"
