"""Where the application went into SQLAlchemy to get a connection: there a stack begins.

What lies between that and the pool tells nothing: three frames from ``Engine.connect``
on, seventeen more in a flush. CPython makes an object of each frame that is looked at:
that costs as much as all that is worth telling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from sys import _getframe as frame_at
from types import CodeType, FrameType, FunctionType

from sqlalchemy.engine import Engine

from poolwatch.callsites import DEEPEST, CallSites, LonePath

_ENGINE_CONNECT = getattr(Engine.connect, "__code__", None)
_TO_ENGINE = 4
"""Frames up to there: its connection's, and the one that asks the pool."""
_FOR_A_SESSION = "_connection_for_bind"
"""The function that asks an engine when a Session needs a connection."""
_MOST_WAYS = 8
_MOST_PLACES = 2 * DEEPEST

_ways: list[tuple[int, CodeType]] = []
"""Those met so far from a method of Session to the pool: how many frames up it stands,
and its code. They are few, and always of the same length."""


def entry() -> FrameType:
    """The frame that a stack begins with, called by what stands for the pool's connect.

    It is that of a method of Session if that led here, the one that has called
    ``Engine.connect`` if that is where it always is, and else the one that asks the
    pool.
    """
    try:
        frame = frame_at(_TO_ENGINE)
    except ValueError:  # so deep is no stack
        return frame_at(2)
    if frame.f_code is not _ENGINE_CONNECT or frame.f_back is None:
        return frame_at(2)
    frame = frame.f_back
    if frame.f_code.co_name == _FOR_A_SESSION:
        return _known_method() or _method_of_session(frame) or frame
    return frame


def walker(sites: CallSites) -> Callable[[], LonePath]:  # noqa: C901 - written out
    """Make what walks a stack while nobody can look: both in one function.

    That is entry() and capture_alone(). In a suite of tests all of this is run once per
    test, with nothing of it in the processor's caches: each call costs a microsecond.
    """
    bottoms = sites.bottoms

    def walk() -> LonePath:
        path = LonePath()
        add = path.append
        try:
            frame: FrameType = frame_at(_TO_ENGINE)
            code = frame.f_code
            if code is _ENGINE_CONNECT:
                frame = frame.f_back  # type: ignore[assignment]
                code = frame.f_code
                if code.co_name == _FOR_A_SESSION:
                    frame = _known_method() or _method_of_session(frame) or frame
                    code = frame.f_code
            else:
                frame = frame_at(2)
                code = frame.f_code
            while True:  # not counted: that would take as long as looking
                add(code)
                add(frame.f_lasti)
                if id(code) in bottoms:
                    break
                frame = frame.f_back  # type: ignore[assignment]
                code = frame.f_code
        except AttributeError:  # that was the last one
            pass
        except ValueError:  # so deep is no stack
            return sites.capture_alone(frame_at(2))
        if len(path) > _MOST_PLACES:
            del path[_MOST_PLACES:]
        return path

    return walk


def _known_method() -> FrameType | None:
    """Look where it has stood before."""
    for depth, code in _ways:
        try:
            found = frame_at(depth + 1)
        except ValueError:
            continue
        if found.f_code is code:
            return found
    return None


def _method_of_session(frame: FrameType | None) -> FrameType | None:
    """Look for it, and remember the way for the next time."""
    if len(_ways) >= _MOST_WAYS:
        return None
    codes = _methods_of_session()
    for depth in range(_TO_ENGINE + 1, DEEPEST):
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
