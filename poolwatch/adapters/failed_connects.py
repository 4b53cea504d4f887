"""Finds the connections that a failed request has opened: no other code closes them.

While the exception passes, its traceback still has the frames of the call, and they
have what the driver returned: in the application's own creator, in a listener, in the
pool. Only what these frames have in a variable is looked at, and only by its type.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from types import FrameType, TracebackType
from typing import Any

from poolwatch.adapters.connection_facts import facts_of
from poolwatch.ledger.checkout import ConnectionFacts
from poolwatch.runtime.libraries import by_package
from poolwatch.stacks.current import with_callers

_MAX_ERRORS = 8
_MAX_FRAMES = 64
_MAX_STACK = 1000


def connections_opened(
    error: BaseException, began: float, now: float
) -> list[ConnectionFacts]:
    """The facts of the connections in the frames of a call that ``error`` ended.

    They may be older than the call, which lasted from ``began`` to ``now``: the age of
    the session, on the server, has to be that of the call.
    """
    running = _running()
    found: dict[Any, ConnectionFacts] = {}
    for traceback in _tracebacks(error):
        for frame in islice(_frames(traceback), _MAX_FRAMES):
            if id(frame) in running:
                continue
            for connection in _connections_in(frame):
                facts = facts_of(connection, now, now - began)
                if facts.backend_pid is not None:
                    found[facts.session] = facts
    return list(found.values())


def _running() -> set[int]:
    """Ids of the frames of the calling thread: their variables are in use."""
    return {id(frame) for frame in with_callers(sys._getframe(), _MAX_STACK)}


def _tracebacks(error: BaseException) -> Iterator[TracebackType]:
    """The tracebacks of an exception and of those from which it was raised."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left and len(seen) < _MAX_ERRORS:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if each.__traceback__ is not None:
            yield each.__traceback__
        left += [each.__cause__, each.__context__]


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _connections_in(frame: FrameType) -> list[Any]:
    from poolwatch.diagnosis.references.frames import local_variables

    return [value for value in local_variables(frame)[1] if _is_one(value)]


def _is_one(value: Any) -> bool:
    """Whether it is a connection of a driver, or SQLAlchemy's wrapper around one."""
    from poolwatch.diagnosis.references.attributes import (
        bases_of,
        class_name,
        module_of,
    )

    packages = by_package()
    return any(
        "connection" in class_name(base).lower()
        and (
            (library := packages.get(module_of(base).partition(".")[0])) is not None
            and (library.driver is not None or "dialects" in module_of(base))
        )
        for base in bases_of(type(value))
    )
