"""Where the application went into SQLAlchemy to get a connection: there a stack begins.

What lies between that and the pool tells nothing: four frames below ``Engine.connect``,
nineteen more in a flush. CPython makes an object of each frame that is looked at, so it
costs as much as all that is worth telling.
"""

from __future__ import annotations

import sys
from sys import _getframe as frame_at
from types import CodeType, FrameType, FunctionType

from sqlalchemy.engine import Engine

from poolwatch.callsites import DEEPEST

_ENGINE_CONNECT = getattr(Engine.connect, "__code__", None)
_TO_ENGINE = 4
"""Frames up to there: its connection's, and the one that asks the pool."""
_FOR_A_SESSION = "_connection_for_bind"
"""The function that asks an engine when a Session needs a connection."""
_MOST_WAYS = 8

_ways: list[tuple[int, CodeType]] = []
"""Those met so far from a method of Session to the pool: how many frames up it stands,
and its code. They are few, and always of the same length."""


def entry() -> FrameType:
    """The frame that a stack begins with, called by what stands for the pool's connect.

    It is that of a method of Session if that led here, that of ``Engine.connect`` if it
    is where it always is, and else the one that asks the pool.
    """
    try:
        frame = frame_at(_TO_ENGINE)
    except ValueError:  # so deep is no stack
        return frame_at(2)
    if frame.f_code is not _ENGINE_CONNECT:
        return frame_at(2)
    above = frame.f_back
    if above is None or above.f_code.co_name != _FOR_A_SESSION:
        return frame
    for depth, code in _ways:
        try:
            found = frame_at(depth)
        except ValueError:
            continue
        if found.f_code is code:
            return found
    return _method_of_session(above) or frame


def _method_of_session(frame: FrameType | None) -> FrameType | None:
    """Look for it, and remember the way for the next time."""
    if len(_ways) >= _MOST_WAYS:
        return None
    codes = _methods_of_session()
    for depth in range(_TO_ENGINE + 1, DEEPEST):
        if frame is None:
            break
        if id(frame.f_code) in codes:
            _ways.append((depth, frame.f_code))
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
