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

ENGINE_CONNECT = getattr(Engine.connect, "__code__", None)
TO_ENGINE = 3
"""Frames up to there from what stands for the pool's connect: the one that asks the
pool, and its connection's."""
FOR_A_SESSION = "_connection_for_bind"
"""The method that asks an engine when a Session needs a connection."""
_MOST_WAYS = 8
_FARTHEST = 64
"""Frames up that are searched for such a method."""

_ways: list[tuple[int, CodeType]] = []
"""Those met so far from a method of Session to the pool: how many frames up it stands
from what stands for the pool's connect, and its code. They are few, and always of the
same length."""


def entry(above: int) -> FrameType | None:
    """The frame that a stack begins with; None if a greenlet runs nothing above it.

    It is that of a method of Session if that led here, the one that has called
    ``Engine.connect`` if that is where it always is, and else the one that asks the
    pool. What stands for the pool's own connect is ``above`` frames up from here.
    """
    try:
        frame = frame_at(TO_ENGINE + above)
    except ValueError:  # so deep is no stack
        return frame_at(above).f_back
    if frame.f_code is not ENGINE_CONNECT or frame.f_back is None:
        return frame_at(above).f_back
    frame = frame.f_back
    if frame.f_code.co_name == FOR_A_SESSION:
        return known_method(1 + above) or method_of_session(frame) or frame
    return frame


def asking_for_a_session() -> CodeType | None:
    """The code of that method; None as long as SQLAlchemy's ORM is not loaded."""
    orm = sys.modules.get("sqlalchemy.orm.session")
    if orm is None:
        return None
    function = getattr(getattr(orm, "SessionTransaction", None), FOR_A_SESSION, None)
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__  # type: ignore[union-attr]
    return getattr(function, "__code__", None)


def known_method(above: int) -> FrameType | None:
    """Look where it has stood before; ``above`` as for entry()."""
    for depth, code in _ways:
        try:
            found = frame_at(depth + above)
        except ValueError:
            continue
        if found.f_code is code:
            return found
    return None


def method_of_session(frame: FrameType | None) -> FrameType | None:
    """Look for it from what called ``Engine.connect``; remember the way to it."""
    if len(_ways) >= _MOST_WAYS:
        return None
    codes = _methods_of_session()
    for depth in range(TO_ENGINE + 1, _FARTHEST):
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
