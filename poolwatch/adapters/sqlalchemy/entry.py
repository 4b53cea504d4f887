"""Where the application went into SQLAlchemy to get a connection: there a stack begins.

What lies between that and the pool tells nothing: three frames from ``Engine.connect``
on, seventeen more in a flush. CPython makes an object of each frame that is looked at:
that costs as much as all that is worth telling.
"""

from __future__ import annotations

import sys
from sys import _getframe as frame_at
from types import CodeType, FrameType, FunctionType

from sqlalchemy.engine import Engine

_ENGINE_CONNECT = getattr(Engine.connect, "__code__", None)
_TO_ENGINE = 3
"""Frames from our ``connect`` up to ``Engine.connect``: that of ``raw_connection`` and
that of ``Connection.__init__`` lie between."""
_FOR_A_SESSION = "_connection_for_bind"
"""The method that asks an engine when a Session needs a connection."""
_MOST_WAYS = 8
_FARTHEST = 64
"""Frames up that are searched for a method of Session."""

_ways: list[tuple[int, CodeType]] = []
"""The distances from our ``connect`` up to a method of Session, and the code of that
method, as met so far. They are few: each method has one."""


def entry() -> FrameType | None:
    """The frame that a stack begins with; None if a greenlet runs nothing above it.

    That is the frame of a method of Session if one led here, that of the caller of
    ``Engine.connect`` if that is where it always is, and else that of the caller of the
    pool. Only our ``connect`` may call this.
    """
    try:
        frame = frame_at(_TO_ENGINE + 1)
    except ValueError:  # the stack is shorter than that
        return frame_at(1).f_back
    if frame.f_code is not _ENGINE_CONNECT or frame.f_back is None:
        return frame_at(1).f_back
    frame = frame.f_back
    if frame.f_code.co_name == _FOR_A_SESSION:
        return _known_method() or _method_of_session(frame) or frame
    return frame


def _known_method() -> FrameType | None:
    """The method of Session, if it stands at a distance that was met before."""
    for depth, code in _ways:
        try:
            found = frame_at(depth + 2)
        except ValueError:
            continue
        if found.f_code is code:
            return found
    return None


def _method_of_session(frame: FrameType | None) -> FrameType | None:
    """Look for it from the caller of ``Engine.connect`` on; remember the distance."""
    if len(_ways) >= _MOST_WAYS:
        return None
    codes = _methods_of_session()
    for depth in range(_TO_ENGINE + 1, _FARTHEST):
        if frame is None:
            break
        if id(frame.f_code) in codes:
            way = depth, frame.f_code
            if way not in _ways:  # another thread may have been here
                _ways.append(way)
            return frame
        frame = frame.f_back
    return None


def _methods_of_session() -> set[int]:
    """Codes of the public ones. SQLAlchemy's ORM is there, or nobody would ask."""
    session = getattr(sys.modules.get("sqlalchemy.orm.session"), "Session", None)
    members = vars(session).items() if session is not None else ()
    return {
        id(member.__code__)
        for name, member in members
        if isinstance(member, FunctionType) and not name.startswith("_")
    }
