"""Completion, in the shells themselves."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from contextlib import suppress

import pyte
import pytest
from helpers import until
from screens import shown

from poolwatch.commands.main import main

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(cat script)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        "fpath=($PWD $fpath); autoload compinit; compinit -D -u",
    ),
}


@pytest.fixture
def script(tmp_path, capsys, monkeypatch):
    """``script(shell)`` writes the completion into the current directory."""
    monkeypatch.chdir(tmp_path)

    def written(shell):
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        assert main(["completion", shell]) == 0
        text = capsys.readouterr().out
        for name in ("script", "_poolwatch"):  # zsh looks for the latter
            (tmp_path / name).write_text(text)

    return written


@pytest.mark.processes
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_a_command_an_option_and_a_file(shell, script, tmp_path):
    """What a user types into a terminal, and what the shell makes of it."""
    script(shell)
    (tmp_path / "moment.json").write_text("")
    command, setup = SHELLS[shell]
    terminal, inner = pty.openpty()
    os.set_blocking(terminal, False)
    child = subprocess.Popen(
        command,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "HOME": str(tmp_path)},
    )
    os.close(inner)
    screen = pyte.Screen(100, 24)
    stream = pyte.ByteStream(screen)

    def shows(text):
        with suppress(BlockingIOError):
            stream.feed(os.read(terminal, 65536))
        return text in shown(screen)

    try:
        os.write(terminal, f"{setup}; PS1='rea''dy> '\n".encode())
        until(lambda: shows("ready> "))  # keys before the prompt are not the editor's
        for typed, completed in (
            ("poolwatch comp\t", "poolwatch completion"),
            ("\x15poolwatch ps --fro\t", "poolwatch ps --frozen"),
            ("\x15poolwatch check --severity cri\t", "--severity critical"),
            ("\x15poolwatch tui mom\t", "poolwatch tui moment.json"),
        ):
            os.write(terminal, typed.encode())
            until(lambda completed=completed: shows(completed), what=typed)
    finally:
        child.kill()
        child.wait()
        os.close(terminal)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("poolwatch comp", "completion"),
        ("poolwatch ps --fro", "--frozen"),
        ("poolwatch check --severity ", "critical"),
        ("poolwatch run -- python scr", "script"),
    ],
)
def test_fish_offers(typed, offered, script):
    """fish says itself what it would offer."""
    script("fish")
    ask = f"source script; complete -C '{typed}'"
    done = subprocess.run(
        ["fish", "-N", "-c", ask], capture_output=True, text=True, check=True
    )
    assert offered in [line.partition("\t")[0] for line in done.stdout.splitlines()]


def test_without_the_library(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'poolwatch[completion]'" in capsys.readouterr().err
