"""The program and sub-command of this process, and the master process of a worker.

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
_MAX_WORDS = 2
_TAKES_VALUE = re.compile(
    r"-(?:[^-mcXW]*([mcXW])|-check-hash-based-pycs)(.*)", re.DOTALL
)
"""Python's own options with a value."""
_APPLICATION = ("-A", "--app")
"""Option before the sub-command: ``celery -A shop worker``."""
_TITLE = re.compile(r"\[?([a-z]+?)d?: ")
"""Process titles set by gunicorn and celery: ``gunicorn: master [shop:app]``."""
_SERVERS = frozenset({"gunicorn", "uvicorn", "hypercorn", "waitress-serve"})
"""Servers that another program may start."""
_LAUNCHERS = frozenset({
    "pytest", "py.test", "tox", "nox", "honcho", "circusd", "supervisord", "invoke",
    "make", "poetry", "pipenv", "uv", "hatch", "pdm", "coverage", "watchmedo",
})  # fmt: skip
"""Programs that only start other programs."""
_SPAWNED = "multiprocessing."
_MAX_ANCESTORS = 4
"""Maximum number of ancestors that are read."""

Words = tuple[str, ...]
"""The program, and its sub-command."""


class _ProgramInfo(NamedTuple):
    """The program of a process."""

    words: Words
    """Empty if unknown."""
    parent: int | None
    """The pid of the master process, if this one is its worker."""


def forks_unseen() -> bool:
    """Whether this is uWSGI before it forks its workers.

    It forks without telling Python. A thread that runs before stays in the worker's
    tables when it has ended, and whoever reads the stacks there crashes the worker.
    """
    uwsgi = sys.modules.get("uwsgi")
    try:
        return uwsgi is not None and not (uwsgi.worker_id() or uwsgi.mule_id())
    except Exception:  # noqa: BLE001 - another module of this name
        return False


def program() -> str:
    """The program of this process with its sub-command: ``airflow scheduler``."""
    words = _started(os.getpid()).words
    return " ".join(words) if words else _name_from_argv()


def parent() -> int | None:
    """The pid of the master process, if this process is its worker."""
    return _started(os.getpid()).parent


def _name_from_argv() -> str:
    argv = getattr(sys, "argv", None)  # the application may have changed it
    first = argv[0] if type(argv) is list and argv else None
    if type(first) is str and first not in ("", "-c", "-m"):
        return _script_name(first)
    return Path(sys.executable or "python").name


@lru_cache(maxsize=1)
def _started(pid: int) -> _ProgramInfo:
    try:
        return _find_program(words_of(sys.orig_argv), pid)
    except (OSError, ValueError, TypeError):  # no /proc, or a modified orig_argv
        return _ProgramInfo((), None)


def _find_program(words: Words | None, pid: int) -> _ProgramInfo:
    """Climb to the ancestors that belong to the same program.

    ``words`` are those of this process: None if unknown, empty for a process spawned by
    multiprocessing.
    """
    if words is None:
        return _ProgramInfo((), None)
    master = None
    for _ in range(_MAX_ANCESTORS):
        pid = _parent_of(pid)
        command_line = _command_line(pid)
        title = _TITLE.match(command_line[0]) if command_line else None
        if title is not None and words[:1] == title.groups():
            master = pid
            continue
        parent_words = words_of(command_line)
        if parent_words is None:
            break
        server_worker = words[:1] and words[0] in _SERVERS and len(parent_words) > 1
        if words and parent_words != words and not server_worker:
            break
        if server_worker and parent_words[0] in _LAUNCHERS:
            break
        words, master = parent_words or words, pid
    return _ProgramInfo(words, master if words else None)


def words_of(argv: Sequence[str]) -> Words | None:
    """The program and its sub-command, from the command line of a Python process.

    Empty for a process spawned by multiprocessing; None if unknown.
    """
    if not argv or not _PYTHON.fullmatch(Path(argv[0]).name):
        return None
    index = 1
    while index < len(argv) and argv[index].startswith("-") and len(argv[index]) > 1:
        option = argv[index]
        letter = _TAKES_VALUE.match(option)
        value = letter[2] if letter else ""
        if letter and not value:
            index += 1
            value = argv[index] if index < len(argv) else ""
        if letter and letter[1] == "c":
            return () if _SPAWNED in value else None
        index += 1
        if letter and letter[1] == "m" and value:
            return (value.removesuffix(".__main__"), *_words(argv[index:]))
    if index >= len(argv) or argv[index] in ("", "-"):
        return None
    return (_script_name(argv[index]), *_words(argv[index + 1 :]))


def _script_name(script: str) -> str:
    path = Path(script)
    return path.parent.name if path.name == "__main__.py" else path.name


def _words(arguments: Sequence[str]) -> Words:
    rest = list(arguments)
    if rest[:1] and rest[0] in _APPLICATION:
        del rest[:2]
    words: list[str] = []
    for word in rest[:_MAX_WORDS]:
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
