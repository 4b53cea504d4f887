"""Finds the frame at which a recorded stack begins: the application's call of
SQLAlchemy.

The frames between that call and the pool are left out: three below ``Engine.connect``,
seventeen more in a flush. They say nothing about the application, and CPython creates
an object for each visited frame, which would double the cost of a capture.
"""

from __future__ import annotations

import sys
from sys import _getframe as frame_at
from types import CodeType, FrameType, FunctionType

from sqlalchemy.engine import Engine

_ENGINE_CONNECT = getattr(Engine.connect, "__code__", None)
_ENGINE_CONNECT_DEPTH = 3
"""Frames from our ``connect`` up to ``Engine.connect``; ``raw_connection`` and
``Connection.__init__`` are in between.
"""
_SESSION_BIND_METHOD = "_connection_for_bind"
"""The Session method that gets a connection from an engine."""
_MAX_KNOWN_METHODS = 8
_MAX_DEPTH = 64
"""How many frames are searched for a public method of Session."""

_known_methods: list[tuple[int, CodeType]] = []
"""Depth of a Session method above our ``connect``, and its code, as found so far. There
are few: each method has one depth.
"""


def entry() -> FrameType | None:
    """The frame to begin the stack with; None if the greenlet has none above us.

    That is the public Session method on the stack, if any; else the caller of
    ``Engine.connect``, if that is at its usual depth; else the caller of the pool. Must
    be called directly by our ``connect``.
    """
    try:
        frame = frame_at(_ENGINE_CONNECT_DEPTH + 1)
    except ValueError:  # the stack is shorter than that
        return frame_at(1).f_back
    if frame.f_code is not _ENGINE_CONNECT or frame.f_back is None:
        return frame_at(1).f_back
    frame = frame.f_back
    if frame.f_code.co_name == _SESSION_BIND_METHOD:
        return _find_known_method() or _find_session_method(frame) or frame
    return frame


def _find_known_method() -> FrameType | None:
    """The Session method, if it is at an already known depth."""
    for depth, code in _known_methods:
        try:
            found = frame_at(depth + 2)
        except ValueError:
            continue
        if found.f_code is code:
            return found
    return None


def _find_session_method(frame: FrameType | None) -> FrameType | None:
    """Search from the caller of ``Engine.connect`` upwards; remember the depth."""
    if len(_known_methods) >= _MAX_KNOWN_METHODS:
        return None
    codes = _session_methods()
    for depth in range(_ENGINE_CONNECT_DEPTH + 1, _MAX_DEPTH):
        if frame is None:
            break
        if id(frame.f_code) in codes:
            known = depth, frame.f_code
            if known not in _known_methods:  # another thread may have added it
                _known_methods.append(known)
            return frame
        frame = frame.f_back
    return None


def _session_methods() -> set[int]:
    """Ids of the codes of Session's public methods. The ORM is loaded at this point."""
    session = getattr(sys.modules.get("sqlalchemy.orm.session"), "Session", None)
    members = vars(session).items() if session is not None else ()
    return {
        id(member.__code__)
        for name, member in members
        if isinstance(member, FunctionType) and not name.startswith("_")
    }
