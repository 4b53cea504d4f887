"""The program of this process and its sub-command, and the process it is a worker of.

Both are read from command lines. Only the program and the bare words right after it are
used: options and their values may be secrets.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_PYTHON = re.compile(r"(?:python|pypy)[\d.]*t?(?:\.exe)?", re.IGNORECASE)
_WORD = re.compile(r"[a-z][a-z0-9_-]{0,23}")
_MOST_WORDS = 2
_TAKES_VALUE = re.compile(
    r"-(?:[^-mcXW]*([mcXW])|-check-hash-based-pycs)(.*)", re.DOTALL
)
"""Python's own options with a value."""
_APPLICATION = ("-A", "--app")
"""Names the application before the sub-command: ``celery -A shop worker``."""
_TITLE = re.compile(r"\[?([a-z]+?)d?: ")
"""How gunicorn and celery name their processes: ``gunicorn: master [shop:app]``."""
_SERVERS = frozenset({"gunicorn", "uvicorn", "hypercorn", "waitress-serve"})
"""Servers that another program may start."""
_LAUNCHERS = frozenset({
    "pytest", "py.test", "tox", "nox", "honcho", "circusd", "supervisord", "invoke",
    "make", "poetry", "pipenv", "uv", "hatch", "pdm", "coverage", "watchmedo",
})  # fmt: skip
"""Programs that only start other programs."""
_SPAWNED = "multiprocessing."
_FARTHEST = 4
"""Ancestors that are read."""

Words = tuple[str, ...]
"""The program, and its sub-command."""


class Started(NamedTuple):
    """The program of a process."""

    words: Words
    """Empty if they are not known."""
    parent: int | None
    """The pid of that process, if this one is a worker of it."""


def program() -> str:
    """The program of this process, in words: ``airflow scheduler``."""
    words = _started(os.getpid()).words
    return " ".join(words) if words else _by_argv()


def parent() -> int | None:
    """The pid of the process that this one is a worker of, if it is one."""
    return _started(os.getpid()).parent


def _by_argv() -> str:
    argv = getattr(sys, "argv", None)  # the application may have changed it
    first = argv[0] if type(argv) is list and argv else None
    if type(first) is str and first not in ("", "-c", "-m"):
        return _name_of(first)
    return Path(sys.executable or "python").name


@lru_cache(maxsize=1)
def _started(pid: int) -> Started:
    try:
        return _climb(words_of(sys.orig_argv), pid)
    except (
        OSError,
        ValueError,
        TypeError,
    ):  # no /proc, or the application changed the list
        return Started((), None)


def _climb(words: Words | None, pid: int) -> Started:
    """Follow the parents as long as this process belongs to their program.

    ``words`` are those of this process: None if they are not known, empty for a process
    that multiprocessing has spawned.
    """
    if words is None:
        return Started((), None)
    master = None
    for _ in range(_FARTHEST):
        pid = _parent_of(pid)
        above = _command_line(pid)
        title = _TITLE.match(above[0]) if above else None
        if title is not None and words[:1] == title.groups():
            master = pid
            continue
        theirs = words_of(above)
        if theirs is None:
            break
        served = words[:1] and words[0] in _SERVERS and len(theirs) > 1
        if words and theirs != words and not served:
            break
        if served and theirs[0] in _LAUNCHERS:
            break
        words, master = theirs or words, pid
    return Started(words, master if words else None)


def words_of(argv: Sequence[str]) -> Words | None:
    """The program and its sub-command, from the command line of a Python process.

    Empty for a process that multiprocessing has spawned; None if they are not known.
    """
    if not argv or not _PYTHON.fullmatch(Path(argv[0]).name):
        return None
    at = 1
    while at < len(argv) and argv[at].startswith("-") and len(argv[at]) > 1:
        option = argv[at]
        letter = _TAKES_VALUE.match(option)
        value = letter[2] if letter else ""
        if letter and not value:
            at += 1
            value = argv[at] if at < len(argv) else ""
        if letter and letter[1] == "c":
            return () if _SPAWNED in value else None
        at += 1
        if letter and letter[1] == "m" and value:
            return (value.removesuffix(".__main__"), *_words(argv[at:]))
    if at >= len(argv) or argv[at] in ("", "-"):
        return None
    return (_name_of(argv[at]), *_words(argv[at + 1 :]))


def _name_of(script: str) -> str:
    path = Path(script)
    return path.parent.name if path.name == "__main__.py" else path.name


def _words(arguments: Sequence[str]) -> Words:
    rest = list(arguments)
    if rest[:1] and rest[0] in _APPLICATION:
        del rest[:2]
    words: list[str] = []
    for word in rest[:_MOST_WORDS]:
        if not _WORD.fullmatch(word):
            break
        words.append(word)
    return tuple(words)


def _parent_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(stat.rpartition(")")[2].split()[1])


def _command_line(pid: int) -> list[str]:
    line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
    return [os.fsdecode(part) for part in line.split(b"\0")] if line else []
