"""A reference path in words: the names that the application's author gave.

A chain is a list of objects, from the value of a local or global variable to the
connection proxy. Steps inside SQLAlchemy, ``contextlib`` and thread-locals mean nothing
to the reader: they are folded into one. Keys of dictionaries may be data (tokens,
addresses): only plain words are shown.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from functools import partial
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    CoroutineType,
    FrameType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    TracebackType,
)
from typing import Any

from poolwatch.diagnosis.references.attributes import (
    attributes_of,
    bases_of,
    class_dict,
    class_name,
    is_thread_local,
    module_of,
)
from poolwatch.diagnosis.references.circumstances import circumstances_of
from poolwatch.diagnosis.references.follow import (
    CONTAINERS,
    class_members,
    is_of_server,
    is_of_sqlalchemy,
)
from poolwatch.diagnosis.references.frames import (
    SUSPENDABLE,
    frame_of,
    is_suspendable,
    local_variables,
)
from poolwatch.diagnosis.references.futures import callbacks_of, is_of_asyncio
from poolwatch.diagnosis.references.path import PathKind, ReferencePath
from poolwatch.diagnosis.references.places import Place
from poolwatch.model import Frame
from poolwatch.stacks.capture import resolve

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z_.-]{0,31}")
_PLUMBING = (*CONTAINERS, CellType, MethodType)
_NEAR = 2
"""Most steps between a variable and the session or connection it stands for."""
_OWN = 3
"""Most steps from a variable of a request to a generator that waits for its end."""
_FAMILY_WORDS = {
    "sqlalchemy": None,
    "asyncio": None,
    "contextlib": "an open context manager",
    "thread-local": "its value for one thread",
}


def describe(
    place: Place, chain: Sequence[Any], same_holder: bool | None
) -> ReferencePath:
    """Describe a chain of references in words.

    ``same_holder``: whether the root belongs to the holder itself.
    """
    kind, steps = _path_kind(place, chain), in_words(place, chain)
    frame = _frame_of(place)
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
        near=is_near(steps, place, chain),
        circumstances=tuple(circumstances_of(place, chain)),
    )


def rank(path: ReferencePath) -> tuple[int, ...]:
    """The order of several paths to one hold: the lowest is reported.

    A path that shows the connection in use comes first. Among those paths, a frame of
    the user's code ranks before a library's frame; a frame with a direct path before
    one whose path leads over a suspended generator or coroutine (a request's middleware
    before the generator that will close the session); a frame that has the suspended
    code before one that reaches it somewhere (a server, over its set of connections);
    another holder's frame before one
    of the holder itself; a running frame before a suspended one.
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


def in_words(place: Place, chain: Sequence[Any]) -> tuple[str, ...]:
    """The steps of a chain in words; its last object is the proxy itself."""
    words: list[str | None] = [_first_step(place, chain)]
    current_family: str | None = None
    previous: Any = None
    for node, following in itertools.pairwise(chain):
        family = _family(node)
        if family is not None:
            if family != current_family:
                words.append(_FAMILY_WORDS[family])
            if (current_family, family) != ("sqlalchemy", "thread-local"):
                current_family = family
        elif not isinstance_of(node, _PLUMBING):
            current_family = None
        if current_family is None:
            words.append(_step(previous, node, following))
        previous = node
    if current_family == "sqlalchemy":
        words.append("its connection")
    return tuple([word for word in words if word])


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
    return "task result" if _is_future(kind) else "unknown"


def _is_queue(kind: type) -> bool:
    """Whether it is a queue, or a job in one: with its parts it is one container."""
    name, module = class_name(kind), module_of(kind)
    if name in ("_WorkItem", "Handle", "TimerHandle"):
        return module.startswith(("concurrent.", "asyncio."))
    return module in ("queue", "asyncio.queues")


def _is_future(kind: type) -> bool:
    named = class_name(kind) in ("Future", "Task")
    return named and module_of(kind).startswith(("_asyncio", "asyncio", "concurrent"))


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
    module = place.code is not None and place.code.co_name == "<module>"
    return len(after_suspended) <= (0 if module else _NEAR)


def is_own(path: Sequence[str], chain: Sequence[Any]) -> bool:
    """Whether a near path is that of who really has the connection.

    A server reaches the suspended generators of all its requests through its set of
    connections; a request reaches its own ones in a few steps. A suspended coroutine
    is the work of its own task.
    """
    if any(type(node) is CoroutineType for node in chain):
        return False
    steps = _steps_between(path)
    suspended = next((at for at, s in enumerate(steps) if "of suspended " in s), 0)
    return suspended <= _OWN


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
        elif not isinstance_of(chain[at], _PLUMBING):
            break
    holder = chain[first - 1] if first else None
    owner = chain[first - 2] if first > 1 else None
    if not isinstance_of(holder, CONTAINERS) or isinstance_of(owner, (partial,)):
        return False
    return attributes_of(owner) is not holder


def isinstance_of(node: Any, kinds: tuple[type, ...]) -> bool:
    """Like ``isinstance``, without running code of the object, which may be a proxy."""
    return issubclass(type(node), kinds)


def _family(node: Any) -> str | None:
    kind = type(node)
    if is_of_sqlalchemy(kind):
        return "sqlalchemy"
    if is_thread_local(kind):
        return "thread-local"
    if _is_queue(kind) or _is_future(kind):
        return None
    package = module_of(kind).partition(".")[0].lstrip("_")
    if package in ("asyncio", "uvloop"):  # a transport, say, and its protocol
        return "asyncio"
    return "contextlib" if package == "contextlib" else None


def _first_step(place: Place, chain: Sequence[Any]) -> str:
    key = id(chain[0])
    if key not in place.first_words:
        place.first_words[key] = _describe_root(place, chain)
    return place.first_words[key]


def _describe_root(place: Place, chain: Sequence[Any]) -> str:
    name = _name_of(place.names(), chain[0])
    if name is None and isinstance_of(chain[0], (CellType,)) and len(chain) > 1:
        name = _name_of(place.names(), chain[1])
    if place.code is not None:
        where = _position(place.code, place.lasti)
        if place.far:
            return f"reachable over many references from the variables of {where}"
        return f"local '{name}' of {where}" if name else f"a temporary of {where}"
    if name and place.kind in ("global", "context variable"):
        return f"{place.kind} '{name}' of {place.title}"
    return place.title


def _position(code: Any, lasti: int) -> str:
    frame = resolve(((code, lasti),))[0]
    return f"{code.co_qualname} at {PurePath(frame.file).name}:{frame.line}"


def _name_of(pairs: Iterable[tuple[Any, Any]], wanted: Any) -> str | None:
    for name, value in pairs:
        if value is wanted:
            return name if type(name) is str else None
    return None


def _step(previous: Any, node: Any, following: Any) -> str | None:
    """The step from ``node`` to ``following``; None if it needs no words."""
    if _is_queue(type(node)) or _is_queue(type(previous)):
        return None
    attributes = attributes_of(previous)
    if attributes is not None and node is attributes:
        name = _name_of(attributes.items(), following)
        return f"attribute '{name}'" if name else "an attribute"
    for kinds, describe_step in _DESCRIBERS:
        if isinstance_of(node, kinds):
            return describe_step(node, following)
    return _instance_step(node, following)


def _dict_step(node: Any, following: Any) -> str:
    name = _name_of(dict.items(node), following)
    if name is not None and _PLAIN.fullmatch(name):
        return f"key '{name}'"
    return "an entry of a dict"


def _container_step(node: Any, _: Any) -> str:
    return f"an item of a {class_name(type(node))}"


def _function_step(node: Any, following: Any) -> str | None:
    if not isinstance_of(following, (CellType,)):
        return f"a default or attribute of function {node.__qualname__}"
    if is_of_asyncio(node):
        return None
    cells = zip(node.__code__.co_freevars, node.__closure__ or (), strict=False)
    name = _name_of(cells, following)
    return f"closure variable '{name}' of {node.__qualname__}"


def _method_step(node: Any, _: Any) -> str:
    function = node.__func__  # or anything else that can be called
    named = isinstance_of(function, (FunctionType, BuiltinFunctionType))
    return f"bound method '{function.__name__}'" if named else "a bound method"


def _suspended_step(node: Any, following: Any) -> str | None:
    frame = frame_of(node)
    return None if frame is None else _local_step(frame, following, "suspended ", "")


def _ended_frame_step(node: Any, following: Any) -> str:
    return _local_step(node, following, "", ", which has ended")


def _local_step(frame: FrameType, value: Any, state: str, more: str) -> str:
    names, values = local_variables(frame)
    if isinstance_of(value, (CellType,)):
        value = value.cell_contents
    name = _name_of(zip(names, values, strict=False), value)
    what = f"local '{name}'" if name else "a temporary"
    return f"{what} of {state}{_position(frame.f_code, frame.f_lasti)}{more}"


def _exception_step(node: Any, following: Any) -> str:
    if isinstance_of(following, (TracebackType,)):
        return f"the traceback of {class_name(type(node))}"
    return f"inside {class_name(type(node))}"


def _class_step(node: Any, following: Any) -> str:
    name = _name_of(class_members(node).items(), following)
    return f"class attribute '{name}' of {class_name(node)}"


def _context_step(node: Any, following: Any) -> str:
    named = ((variable.name, value) for variable, value in Context.items(node))
    return f"context variable '{_name_of(named, following)}'"


def _no_step(*_: Any) -> None:
    return None


_DESCRIBERS: tuple[tuple[tuple[type, ...], Callable[[Any, Any], str | None]], ...] = (
    ((dict,), _dict_step),
    (CONTAINERS, _container_step),
    ((FunctionType,), _function_step),
    ((MethodType,), _method_step),
    ((CellType, TracebackType), _no_step),
    (SUSPENDABLE, _suspended_step),
    ((FrameType,), _ended_frame_step),
    ((BaseException,), _exception_step),
    ((type,), _class_step),
    ((Context,), _context_step),
)


def _instance_step(node: Any, following: Any) -> str | None:
    kind = type(node)
    attributes = attributes_of(node)
    if attributes is following:
        return None
    name = _name_of((attributes or {}).items(), following)
    name = name or _name_of(_slots(node), following)
    if name:
        return f"attribute '{name}'"
    if _is_future(kind):
        return _future_step(node, following)
    return f"inside a {class_name(kind)}"


def _future_step(node: Any, following: Any) -> str | None:
    kind = class_name(type(node)).lower()
    if not any(each is following for each in callbacks_of(node)):
        return f"the result of a {kind}"
    return None if is_of_asyncio(following) else f"a callback of a {kind}"


def _slots(node: Any) -> Iterable[tuple[str, Any]]:
    for base in bases_of(type(node)):
        for name, member in class_dict(base).items():
            if type(member) is MemberDescriptorType:
                try:
                    yield name, member.__get__(node)
                except AttributeError:
                    continue
