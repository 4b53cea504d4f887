"""Local variables of frames, and the frames of generators and coroutines.

The garbage collector sees the locals of a suspended generator or coroutine and of an
ended frame, but not those of a running frame. There ``f_locals`` is the only way. Since
Python 3.13 it is a harmless view. In earlier versions it is a dict that the frame
keeps, so objects in it stay alive after the function has deleted them. The dict is
therefore emptied right after it was copied, with two exceptions:

- The application itself has a reference to the dict (``locals()``, ``eval``): the dict
  is left as it is.
- A trace or profile function written in Python is active on the frame. When it returns,
  the interpreter writes the dict back into the variables, so the frame is not read at
  all. Such a function has the frame among its own locals.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Iterator, Sequence
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

from poolwatch.diagnosis.references.attributes import class_name

SUSPENDABLE = (GeneratorType, CoroutineType, AsyncGeneratorType)
_TRACING = frozenset({"frame", "event"})
"""Names of the arguments of a trace function."""
_ASEND = ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper")
_MAX_AWAITS = 1001
"""Longest chain of awaits that is followed."""


def is_suspendable(node: Any) -> bool:
    """Whether it is a generator or coroutine."""
    return issubclass(type(node), SUSPENDABLE)  # isinstance could run its code


def stored_in(generator: Any) -> Sequence[Any]:
    """The variables and temporaries of a generator, coroutine or frame.

    Leaves out an empty dict of locals, which an earlier search may have left there.
    """
    held = gc.get_referents(generator)
    return [each for each in held if type(each) is not dict or each]


def local_variables(frame: FrameType) -> tuple[list[Any], list[Any]]:
    """Names and values of the local variables of a frame, as of now."""
    variables: Any = frame.f_locals
    if not issubclass(type(variables), dict):
        if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            within = gc.get_referents(variables)  # a class body or exec() with
            return [None] * len(within), within  # a mapping of its own
        pairs = variables.items()
        return [name for name, _ in pairs], [value for _, value in pairs]
    names = list(dict.keys(variables))
    values = list(dict.values(variables))
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(variables) <= 3:
        # Three references: the frame, this function, getrefcount. A walk refers to the
        # dict only if it was not empty, which means that other code has filled it.
        variables.clear()
    return names, values


def variables_of(frame: FrameType) -> dict[str, Any]:
    """The local variables of a frame by name, as of now."""
    return dict(zip(*local_variables(frame), strict=True))


def traces(frame: FrameType) -> bool:
    """Whether a frame is that of a trace or profile function, by its arguments.

    The frame that has called it must not be read then. False from Python 3.13 on.
    """
    if sys.version_info >= (3, 13):
        return False
    code = frame.f_code
    return not _TRACING.isdisjoint(code.co_varnames[: code.co_argcount])


def frame_of(generator: Any) -> FrameType | None:
    """The frame of a generator, coroutine or async generator that has not ended."""
    if not is_suspendable(generator):
        return None
    prefix = _prefix(type(generator))
    frame: FrameType | None = getattr(generator, prefix + "_frame")
    return frame


def awaited_by(generator: Any) -> Any:
    """The object that a generator, coroutine or async generator awaits."""
    kind = type(generator)
    name = "_yieldfrom" if _prefix(kind) == "gi" else "_await"
    return getattr(generator, _prefix(kind) + name)


def awaits(awaited: Any) -> Iterator[Any]:
    """The coroutines and generators of a task, from its own to the innermost await."""
    for _ in range(_MAX_AWAITS):
        if class_name(type(awaited)) in _ASEND:
            inner = [a for a in gc.get_referents(awaited) if is_suspendable(a)]
            awaited = inner[0] if inner else None
        if not is_suspendable(awaited):
            return
        yield awaited
        awaited = awaited_by(awaited)


def _prefix(kind: type) -> str:
    if kind is CoroutineType:
        return "cr"
    return "ag" if kind is AsyncGeneratorType else "gi"
