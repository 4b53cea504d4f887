"""A reference path: what a chain of references shows, and whether that is a use.

A chain is a list of objects, from the value of a local or global variable to the
connection proxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context
from functools import partial
from types import (
    CoroutineType,
    FrameType,
    FunctionType,
    TracebackType,
)
from typing import Any

from poolwatch.diagnosis.references.attributes import (
    attributes_of,
    is_thread_local,
    isinstance_of,
    module_of,
)
from poolwatch.diagnosis.references.circumstances import circumstances_of
from poolwatch.diagnosis.references.follow import (
    CONTAINERS,
    is_of_server,
)
from poolwatch.diagnosis.references.frames import (
    SUSPENDABLE,
    is_suspendable,
)
from poolwatch.diagnosis.references.futures import (
    is_future,
)
from poolwatch.diagnosis.references.named import names_path
from poolwatch.diagnosis.references.path import PathKind, ReferencePath
from poolwatch.diagnosis.references.places import Place
from poolwatch.diagnosis.references.words import PLUMBING, in_words
from poolwatch.model import Frame
from poolwatch.stacks.capture import resolve

_NEAR = 2
"""Most steps between a variable and the session or connection it stands for."""
_OWN = 3
"""Most steps from a variable of a request to a generator that waits for its end."""


def describe(
    place: Place, chain: Sequence[Any], same_holder: bool | None
) -> ReferencePath:
    """Describe a chain of references in words.

    ``same_holder``: whether the root belongs to the holder itself.
    """
    kind, steps = _path_kind(place, chain), in_words(place, chain)
    frame = _frame_of(place)
    in_code = frame is not None and place.is_user and not place.far
    in_code = in_code and not _is_module(place)
    direct = kind not in ("exception", "thread-local", "context variable")
    return ReferencePath(
        kind=kind,
        owner=place.owner.name or None,
        same_holder=same_holder,
        is_user=place.is_user or any(map(is_suspendable, chain)),
        frame=frame,
        steps=steps,
        in_hand=direct
        and place.resumes
        and (frame is not None or place.kind == "scheduled call"),
        direct=not _steps_between(steps),
        near=is_near(steps, place, chain) or (in_code and names_path(place, chain)),
        by_attributes=in_code
        and all(step.startswith("attribute '") for step in _steps_between(steps)),
        circumstances=tuple(circumstances_of(place, chain)),
        user=place.owner if place.owner.name else None,
    )


def rank(path: ReferencePath) -> tuple[int, ...]:
    """The order of several paths to one hold: the lowest is reported.

    A path that shows the connection in use comes first. Among those paths, a frame of
    the user's code ranks before a library's frame; a frame with a direct path before
    one whose path leads over a suspended generator or coroutine (a request's middleware
    before the generator that will close the session); a frame that has the suspended
    code before one that reaches it somewhere (a server, over its set of connections);
    another holder's frame before one of the holder itself; a running frame before a
    suspended one.
    """
    if path.in_use:
        return (
            0,
            not path.is_user,
            _steps_to_suspended(path.steps[1:]) > _NEAR,
            any("of suspended " in step for step in path.steps[1:]),
            path.same_holder is not False,
            path.kind != "running frame",
            len(path.steps),
        )
    return 1, len(path.steps), not path.in_hand, not path.is_user


def _path_kind(place: Place, chain: Sequence[Any]) -> PathKind:
    """The most specific kind of object on a chain, else the kind of its root."""
    found: set[PathKind] = {_object_kind(node) for node in chain[:-1]}
    for kind in _KINDS_BY_WEIGHT:
        if kind in found:
            return kind
    return place.kind


_KINDS_BY_WEIGHT: tuple[PathKind, ...] = (
    "exception",
    "thread-local",
    "context variable",
    "task result",
    "generator",
    "closure",
)


def _object_kind(node: Any) -> PathKind:
    kind = type(node)
    if issubclass(kind, (FrameType, TracebackType, BaseException)):
        return "exception"
    if is_thread_local(kind):
        return "thread-local"
    if kind is Context:
        return "context variable"
    if issubclass(kind, SUSPENDABLE):
        return "generator"
    if kind is FunctionType:
        return "closure"
    return "task result" if is_future(kind) else "unknown"


def _frame_of(place: Place) -> Frame | None:
    """The line where the frame of a place is now."""
    if place.code is None:
        return None
    return resolve(((place.code, place.lasti),))[0]


def _steps_between(steps: Sequence[str]) -> list[str]:
    """The steps between a variable and the session or connection."""
    return [step for step in steps[1:] if step != "its connection"]


def is_near(path: Sequence[str], place: Place, chain: Sequence[Any]) -> bool:
    """Whether a chain is so short that the connection belongs to the root.

    A longer chain only shows that the root can reach the connection somewhere in the
    application. ``path`` is the chain in words. At a script's top level only plain
    variables count, because its containers are the globals of a module.

    Suspended code is in use however far away it is, except if the chain leads over what
    a server or a web framework has of all requests to a container: from a server's
    connections to the state of a request, say. The frames of that request are near.
    """
    steps = _steps_between(path)
    suspended = [at for at, word in enumerate(steps) if "of suspended " in word]
    if place.far and not (suspended or place.via_suspended):
        return False
    if _is_stored_by_server(suspended, place, chain):
        return False
    after_suspended = steps[suspended[-1] + 1 :] if suspended else steps
    return len(after_suspended) <= (0 if _is_module(place) else _NEAR)


def _is_module(place: Place) -> bool:
    return place.code is not None and place.code.co_name == "<module>"


def is_own(path: Sequence[str], chain: Sequence[Any]) -> bool:
    """Whether the root of a near path is a user of the connection itself.

    A server reaches the suspended generators of all its requests through its set of
    connections; a request reaches its own ones in a few steps. A suspended coroutine
    is the work of its own task.
    """
    if any(type(node) is CoroutineType for node in chain):
        return False
    return _steps_to_suspended(_steps_between(path)) <= _OWN


def _steps_to_suspended(steps: Sequence[str]) -> int:
    """The steps from a root to the first suspended code; 0 if there is none."""
    return next((at for at, word in enumerate(steps) if "of suspended " in word), 0)


def _is_stored_by_server(
    suspended: Sequence[int], place: Place, chain: Sequence[Any]
) -> bool:
    """Whether suspended code of a chain is stored in a server or web framework.

    ``suspended`` are the steps of suspended code, in words.
    """
    far, via_server = place.far, place.via_server
    step, begin = -1, 0
    nodes = [at for at, node in enumerate(chain) if is_suspendable(node)]
    for next_step, at in zip(suspended, nodes, strict=False):
        far |= next_step - step - 1 > _NEAR
        via_server |= any(map(is_of_server, chain[begin:at]))
        if far and via_server and _is_stored(chain, at):
            return True
        far, via_server, step, begin = False, False, next_step, at + 1
    return False


def _is_stored(chain: Sequence[Any], suspended: int) -> bool:
    """Whether a container has the suspended code at that index.

    An attribute of a response, say, or a call (a closure, a method) will go on with it.
    """
    first = suspended
    for at in range(suspended - 1, -1, -1):
        if module_of(type(chain[at])) == "contextlib":
            first = at  # a context manager, or the exit stack that has it
        elif not isinstance_of(chain[at], PLUMBING):
            break
    holder = chain[first - 1] if first else None
    owner = chain[first - 2] if first > 1 else None
    if not isinstance_of(holder, CONTAINERS) or isinstance_of(owner, (partial,)):
        return False
    return attributes_of(owner) is not holder
