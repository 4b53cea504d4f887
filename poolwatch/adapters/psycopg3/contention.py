"""Finds the threads and tasks that wait to send a statement over a busy connection.

psycopg lets statements of several threads or tasks wait for each other at the lock of
the connection. The statements themselves do not show that. So the stacks of the waiting
threads and tasks are read when a statement ends, while the lock is still held.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg

from poolwatch.diagnosis.references.frames import (
    awaited_by,
    frame_of,
    is_suspendable,
    variables_of,
)
from poolwatch.stacks.capture import current_frames
from poolwatch.stacks.current import with_callers
from poolwatch.stacks.greenlets import thread_ident

MAX_LOOKS = 256
"""Maximum number of times per pool that all threads or tasks are read."""
_MAX_DEPTH = 64
_SENDING = frozenset({"execute", "executemany", "stream", "copy", "commit", "rollback"})
_PACKAGE = str(Path(psycopg.__file__).parent)

_CURSOR: type = next(
    (each for each in psycopg.Cursor.__mro__ if "_conn" in vars(each)), type(None)
)
"""The class with the slot of the connection."""


def waiting_threads(connection: Any) -> Iterator[list[FrameType]]:
    """The stacks, innermost frame first, that wait to send something."""
    own = thread_ident()
    for ident, frame in current_frames().items():
        if ident != own and _sends_over(frame, connection):
            yield list(with_callers(frame, _MAX_DEPTH))


def waiting_tasks(connection: Any) -> Iterator[list[FrameType]]:
    """The stacks of such tasks. Called on the event loop of the connection."""
    for task in sys.modules["asyncio"].all_tasks():
        frames = _awaiting(task.get_coro())
        inside = next((f for f in frames if _is_sending(f.f_code)), None)
        if inside is not None and _sends_over(inside, connection):
            at = frames.index(inside)
            if at and frames[at - 1].f_code.co_filename.endswith("locks.py"):
                yield frames[at:]


def _awaiting(coroutine: Any) -> list[FrameType]:
    """The frames of a suspended coroutine and all that it awaits, innermost first."""
    frames: list[FrameType] = []
    while is_suspendable(coroutine) and len(frames) < _MAX_DEPTH:
        frame = frame_of(coroutine)
        if frame is None:
            break
        frames.append(frame)
        coroutine = awaited_by(coroutine)
    return frames[::-1]


def _is_sending(code: Any) -> bool:
    """Whether it is psycopg's code of a method that sends a statement."""
    return code.co_name in _SENDING and code.co_filename.startswith(_PACKAGE)


def _sends_over(frame: FrameType, connection: Any) -> bool:
    """Whether the frame is of such a method, for this connection."""
    if not _is_sending(frame.f_code):
        return False
    own = variables_of(frame).get("self")
    if own is not None and issubclass(type(own), _CURSOR):
        # the slot, whatever a subclass of the application calls ``_conn``
        own = vars(_CURSOR)["_conn"].__get__(own)
    return own is connection
