"""The package's one door: lazy, and clear about what is missing."""

import subprocess
import sys

import pytest

from poolwatch.errors import MissingExtraError, UsageError
from poolwatch.tui import run, terminal_problem


def test_importing_the_package_loads_no_textual():
    code = (
        "import sys, poolwatch.tui; print([m for m in sys.modules if 'textual' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "textual", None)
    for name in [n for n in sys.modules if n.startswith("poolwatch.tui.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.startswith("textual.")]:
        monkeypatch.setitem(sys.modules, name, None)
    closed = []
    with pytest.raises(MissingExtraError, match=r"pip install 'poolwatch\[tui\]'"):
        run(None, on_close=lambda: closed.append(1))
    assert closed == [1]


@pytest.mark.parametrize("command", ["tui", "demo"])
def test_without_a_terminal_it_says_so(command, tmp_path):
    """Drawn into a file it would go on for ever, and nobody would see it."""
    with (tmp_path / "log").open("w+") as log:
        done = subprocess.run(
            [sys.executable, "-m", "poolwatch", command],
            stdin=subprocess.DEVNULL,
            stderr=log,
            timeout=30,
            check=False,
        )
        log.seek(0)
        said = log.read()
    assert done.returncode == 2
    assert "the dashboard needs a terminal" in said
    assert {"tui": "poolwatch ps", "demo": "--headless"}[command] in said


def test_a_terminal_that_cannot_be_drawn_on(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("TEXTUAL_DRIVER", raising=False)
    with pytest.raises(UsageError, match=r"not TERM=dumb; as text: poolwatch ps$"):
        run(None)
    monkeypatch.setenv("TEXTUAL_DRIVER", "a.web:Driver")  # the browser draws
    assert terminal_problem() is None


@pytest.mark.parametrize("by", ["option", "environment"])
def test_an_unknown_theme(monkeypatch, by):
    if by == "environment":
        monkeypatch.setenv("POOLWATCH_THEME", "nosuch")
    with pytest.raises(UsageError, match="no theme 'nosuch'; the themes: poolwatch, "):
        run(None, theme="nosuch" if by == "option" else None)
