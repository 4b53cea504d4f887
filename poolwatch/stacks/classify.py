"""Classifies a holder's stack: waiting for the database, HTTP, a lock, sleep ...

A stack has Python frames only: the stack of a thread in ``time.sleep`` ends with the
line that called it. So the source line of the innermost frame is read, if available.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from poolwatch.model import Frame
from poolwatch.runtime.libraries import by_package
from poolwatch.stacks.code_owner import application_frames, is_ours

Kind = Literal[
    "database", "http", "network", "sleep", "lock", "file", "process", "code"
]

OUTSIDE: frozenset[Kind] = frozenset(
    {"http", "network", "sleep", "lock", "file", "process"}
)
"""Kinds that are certainly not the database."""

_FILES: dict[Kind, tuple[str, ...]] = {
    "database": tuple(f"{name}/" for name in by_package()),
    "http": (
        "http/client.py",
        "urllib/request.py",
        "urllib3/",
        "requests/",
        "httpx/",
        "httpcore/",
        "aiohttp/",
        "botocore/",
        "grpc/",
    ),
    "process": ("subprocess.py", "asyncio/subprocess.py", "asyncio/base_subprocess.py"),
    "lock": (
        "threading.py",
        "queue.py",
        "asyncio/locks.py",
        "asyncio/queues.py",
        "asyncio/futures.py",
        "asyncio/tasks.py",
        "asyncio/taskgroups.py",
        "asyncio/threads.py",
        "anyio/",
        "concurrent/futures/",
        "multiprocessing/",
    ),
    "network": (
        "socket.py",
        "ssl.py",
        "selectors.py",
        "smtplib.py",
        "ftplib.py",
        "asyncio/streams.py",
    ),
}
_BY_FILE = {
    kind: re.compile("(?:^|/)(?:" + "|".join(map(re.escape, names)) + ")")
    for kind, names in _FILES.items()
}
_NO_CALL = r"^\s*with\s+(?![\w.]*(?:conn|cur|db|sess|trans))[\w.]+\s*[:,]"
"""A ``with`` that runs C code on entry: a lock, or a driver's connection, which is
excluded by its name."""
_FOR_ANYTHING = re.compile(r"\bawait\b|\basync\s|\.acquire\(")
"""Code that may wait for a pool or a statement as well as for a lock."""
_BY_CALL: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("sleep", re.compile(r"\bsleep\(")),
    # Functions written in Python have frames of their own: join() of a thread, result()
    # of a future, get() of most queues. In a source line these names are mostly methods
    # of strings and dicts.
    (
        "lock",
        re.compile(
            r"\.(?:acquire|wait)\(|\.get\((?:\)|block\b|timeout\b)|\bawait\b"
            rf"|\bwith\s+[\w.]*lock\b|{_NO_CALL}"
        ),
    ),
    (
        "network",
        re.compile(
            r"\.(?:recv|recv_into|send|sendall|connect|accept)\(|\bselect\.select\("
        ),
    ),
    ("process", re.compile(r"\bos\.(?:system|wait|waitpid)\(|\bsignal\.(?:pause|sig)")),
    ("file", re.compile(r"\bopen\(|\.(?:read|write|readline|readlines|flush)\(")),
)


@dataclass(frozen=True, slots=True)
class Activity:
    """The current activity of a holder, and its frame in the user's code."""

    kind: Kind
    frame: Frame

    def is_ambiguous(self) -> bool:
        """Whether the line may wait for a pool or a statement as well."""
        line = linecache.getline(self.frame.file, self.frame.line)
        return self.kind == "lock" and _FOR_ANYTHING.search(line) is not None


def activity_of(now: Sequence[Frame]) -> Activity | None:
    """Classify a stack, innermost frame first; None for an empty one."""
    at = next(iter(application_frames([(f.file, f.function) for f in now])), None)
    own = None if at is None else now[at]
    inner = [frame for frame in now[:at] if not is_ours(frame.file)]
    if own is None and not inner:
        return None
    kinds = [_kind_of_file(frame) for frame in inner]
    kind_found = next((kind for kind in kinds if kind is not None), None)
    for kind in ("database", "http"):  # they use sockets and locks internally
        if kind in kinds:
            kind_found = kind
            break
    if kind_found is None and not inner and own is not None:
        kind_found = _kind_of_call(own)
    return Activity(kind_found or "code", own or inner[-1])


def _kind_of_file(frame: Frame) -> Kind | None:
    if frame.function == "sleep":
        return "sleep"
    file = frame.file.replace("\\", "/")
    return next((kind for kind, names in _BY_FILE.items() if names.search(file)), None)


def _kind_of_call(frame: Frame) -> Kind | None:
    line = linecache.getline(frame.file, frame.line)
    return next((kind for kind, call in _BY_CALL if call.search(line)), None)
