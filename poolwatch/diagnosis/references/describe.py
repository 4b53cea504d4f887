"""A reference path in words: the names that the application's author gave.

A chain is a list of objects, from the value of a local or global variable to the
connection proxy. Steps inside SQLAlchemy, ``contextlib`` and thread-locals mean nothing
to the reader: they are folded into one. Keys of dictionaries may be data (tokens,
addresses): only plain words are shown.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    FrameType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    TracebackType,
)
from typing import Any

from poolwatch.diagnosis.references.follow import (
    SUSPENDABLE,
    attributes_of,
    bases_of,
    class_dict,
    class_members,
    class_name,
    frame_of,
    is_of_sqlalchemy,
    is_suspendable,
    is_thread_local,
    local_variables,
    module_of,
)
from poolwatch.diagnosis.references.path import PathKind, ReferencePath
from poolwatch.diagnosis.references.places import Place
from poolwatch.model import Frame
from poolwatch.stacks.capture import resolve

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z_.-]{0,31}")
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_PLUMBING = (*_CONTAINERS, CellType, MethodType)
_NEAR = 2
"""Most steps between a variable and the session or connection it stands for."""
_ENTERED = {
    "sqlalchemy": None,
    "contextlib": "an open context manager",
    "thread-local": "its value for one thread",
}


def describe(place: Place, chain: Sequence[Any], same: bool | None) -> ReferencePath:
    """Put a chain into words; ``same``: whether its root is of the hold's own taker."""
    kind, steps = _kind_of(place, chain), in_words(place, chain)
    frame = _frame_of(place)
    direct = kind not in ("exception", "thread-local", "context variable")
    return ReferencePath(
        kind=kind,
        owner=place.who.name or None,
        same_holder=same,
        is_user=place.is_user or any(map(is_suspendable, chain)),
        frame=frame,
        steps=steps,
        in_hand=direct and (frame is not None or place.kind == "scheduled call"),
        direct=not _between(steps),
        near=is_near(steps, place),
    )


def rank(path: ReferencePath) -> tuple[int, ...]:
    """The order of several paths to one hold: the lowest is reported.

    A path that shows it in use comes first. Among those: the user's frame before a
    library's, a frame that has it before one behind which something suspended has it (a
    request's middleware, and the generator that will close the session in the end), a
    frame of another holder before the taker's own, a running one before a suspended
    one.
    """
    if path.in_use:
        return (
            0,
            not path.is_user,
            any("of suspended " in step for step in path.steps[1:]),
            path.same_holder is not False,
            path.kind != "running frame",
            len(path.steps),
        )
    return 1, len(path.steps), not path.in_hand, not path.is_user


def in_words(place: Place, chain: Sequence[Any]) -> tuple[str, ...]:
    """The steps of a chain in words; its last object is the proxy itself."""
    words: list[str | None] = [_begin(place, chain)]
    inside: str | None = None
    before: Any = None
    for one, other in itertools.pairwise(chain):
        entered = _family(one)
        if entered is not None:
            if entered != inside:
                words.append(_ENTERED[entered])
            if (inside, entered) != ("sqlalchemy", "thread-local"):
                inside = entered
        elif not isinstance_of(one, _PLUMBING):
            inside = None
        if inside is None:
            words.append(_step(before, one, other))
        before = one
    if inside == "sqlalchemy":
        words.append("its connection")
    return tuple([word for word in words if word])


def _kind_of(place: Place, chain: Sequence[Any]) -> PathKind:
    """The most telling kind of object on a chain, else the kind of its root."""
    found: set[PathKind] = {_remarkable(one) for one in chain[:-1]}
    for kind in _BY_WEIGHT:
        if kind in found:
            return kind
    return place.kind


_BY_WEIGHT: tuple[PathKind, ...] = (
    "exception",
    "thread-local",
    "context variable",
    "task result",
    "generator",
    "closure",
)


def _remarkable(one: Any) -> PathKind:
    kind = type(one)
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
    """A queue, or a job in one: with its parts it counts as one container."""
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


def _between(steps: Sequence[str]) -> list[str]:
    """The steps between a variable and the session or connection."""
    return [step for step in steps[1:] if step != "its connection"]


def is_near(path: Sequence[str], place: Place) -> bool:
    """Whether a chain is short enough to say that its end belongs to its root.

    Otherwise the root can only reach it somewhere in the application. ``path`` is the
    chain in words. Of a script's top level only the plain variables count: its
    containers are the globals of a module.
    """
    steps = _between(path)
    parked = [at for at, word in enumerate(steps) if "of suspended " in word]
    beyond = steps[parked[-1] + 1 :] if parked else steps
    if place.far and not (parked or place.parked):
        return False
    module = place.code is not None and place.code.co_name == "<module>"
    return len(beyond) <= (0 if module else _NEAR)


def isinstance_of(one: Any, kinds: tuple[type, ...]) -> bool:
    """``isinstance`` without a call of the object: it may be a proxy."""
    return issubclass(type(one), kinds)


def _family(one: Any) -> str | None:
    kind = type(one)
    if is_of_sqlalchemy(kind):
        return "sqlalchemy"
    if is_thread_local(kind):
        return "thread-local"
    return "contextlib" if module_of(kind) == "contextlib" else None


def _begin(place: Place, chain: Sequence[Any]) -> str:
    key = id(chain[0])
    if key not in place.begun:
        place.begun[key] = _named(place, chain)
    return place.begun[key]


def _named(place: Place, chain: Sequence[Any]) -> str:
    name = _name_among(place.names(), chain[0])
    if name is None and isinstance_of(chain[0], (CellType,)) and len(chain) > 1:
        name = _name_among(place.names(), chain[1])
    if place.code is not None:
        where = _where(place.code, place.lasti)
        if place.far:
            return f"far behind the variables of {where}"
        return f"local '{name}' of {where}" if name else f"a temporary of {where}"
    if name and place.kind in ("global", "context variable"):
        return f"{place.kind} '{name}' of {place.title}"
    return place.title


def _where(code: Any, lasti: int) -> str:
    frame = resolve(((code, lasti),))[0]
    return f"{code.co_qualname} at {PurePath(frame.file).name}:{frame.line}"


def _name_among(pairs: Iterable[tuple[Any, Any]], wanted: Any) -> str | None:
    for name, value in pairs:
        if value is wanted:
            return name if type(name) is str else None
    return None


def _step(before: Any, one: Any, other: Any) -> str | None:
    """The step from ``one`` to ``other``; None if it needs no words."""
    if _is_queue(type(one)) or _is_queue(type(before)):
        return None
    attributes = attributes_of(before)
    if attributes is not None and one is attributes:
        name = _name_among(attributes.items(), other)
        return f"attribute '{name}'" if name else "an attribute"
    for kinds, describe_step in _DESCRIBERS:
        if isinstance_of(one, kinds):
            return describe_step(one, other)
    return _of_instance(one, other)


def _of_dict(one: Any, other: Any) -> str:
    name = _name_among(dict.items(one), other)
    if name is not None and _PLAIN.fullmatch(name):
        return f"key '{name}'"
    return "an entry of a dict"


def _of_container(one: Any, _: Any) -> str:
    return f"an item of a {class_name(type(one))}"


def _of_function(one: Any, other: Any) -> str:
    if not isinstance_of(other, (CellType,)):
        return f"a default or attribute of function {one.__qualname__}"
    cells = zip(one.__code__.co_freevars, one.__closure__ or (), strict=False)
    name = _name_among(cells, other)
    return f"closure variable '{name}' of {one.__qualname__}"


def _of_method(one: Any, _: Any) -> str:
    function = one.__func__  # or anything else that can be called
    named = isinstance_of(function, (FunctionType, BuiltinFunctionType))
    return f"bound method '{function.__name__}'" if named else "a bound method"


def _of_suspended(one: Any, other: Any) -> str | None:
    frame = frame_of(one)
    return None if frame is None else _local_of(frame, other, "suspended ", "")


def _of_ended(one: Any, other: Any) -> str:
    return _local_of(one, other, "", ", which has ended")


def _local_of(frame: FrameType, value: Any, state: str, more: str) -> str:
    names, values = local_variables(frame)
    if isinstance_of(value, (CellType,)):
        value = value.cell_contents
    name = _name_among(zip(names, values, strict=False), value)
    what = f"local '{name}'" if name else "a temporary"
    return f"{what} of {state}{_where(frame.f_code, frame.f_lasti)}{more}"


def _of_exception(one: Any, other: Any) -> str:
    if isinstance_of(other, (TracebackType,)):
        return f"the traceback of {class_name(type(one))}"
    return f"inside {class_name(type(one))}"


def _of_class(one: Any, other: Any) -> str:
    name = _name_among(class_members(one).items(), other)
    return f"class attribute '{name}' of {class_name(one)}"


def _of_context(one: Any, other: Any) -> str:
    named = ((variable.name, value) for variable, value in Context.items(one))
    return f"context variable '{_name_among(named, other)}'"


def _without_words(*_: Any) -> None:
    return None


_DESCRIBERS: tuple[tuple[tuple[type, ...], Callable[[Any, Any], str | None]], ...] = (
    ((dict,), _of_dict),
    (_CONTAINERS, _of_container),
    ((FunctionType,), _of_function),
    ((MethodType,), _of_method),
    ((CellType, TracebackType), _without_words),
    (SUSPENDABLE, _of_suspended),
    ((FrameType,), _of_ended),
    ((BaseException,), _of_exception),
    ((type,), _of_class),
    ((Context,), _of_context),
)


def _of_instance(one: Any, other: Any) -> str | None:
    kind = type(one)
    attributes = attributes_of(one)
    if attributes is other:
        return None
    name = _name_among((attributes or {}).items(), other)
    name = name or _name_among(_slots(one), other)
    if name:
        return f"attribute '{name}'"
    if _is_future(kind):
        return f"the result of a {class_name(kind).lower()}"
    return f"inside a {class_name(kind)}"


def _slots(one: Any) -> Iterable[tuple[str, Any]]:
    for base in bases_of(type(one)):
        for name, member in class_dict(base).items():
            if type(member) is MemberDescriptorType:
                try:
                    yield name, member.__get__(one)
                except AttributeError:
                    continue
