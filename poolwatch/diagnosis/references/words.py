"""A chain of references in words: the names that the application's author gave.

Steps inside SQLAlchemy, ``contextlib`` and thread-locals mean nothing to the reader:
they are folded into one. Keys of dictionaries are not shown, because they may be data
(tokens, addresses). Names of attributes and variables are code.
"""

from __future__ import annotations

import itertools
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

from poolwatch.diagnosis.references.attributes import (
    attributes_of,
    bases_of,
    class_dict,
    class_name,
    is_thread_local,
    isinstance_of,
    module_of,
)
from poolwatch.diagnosis.references.follow import (
    CONTAINERS,
    class_members,
    is_of_sqlalchemy,
)
from poolwatch.diagnosis.references.frames import (
    SUSPENDABLE,
    frame_of,
    local_variables,
)
from poolwatch.diagnosis.references.futures import (
    callbacks_of,
    is_future,
    is_of_asyncio,
)
from poolwatch.diagnosis.references.places import Place
from poolwatch.stacks.capture import resolve

PLUMBING = (*CONTAINERS, CellType, MethodType)
_FAMILY_WORDS = {
    "sqlalchemy": None,
    "asyncio": None,
    "contextlib": "an open context manager",
    "thread-local": "its value for one thread",
}


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
        elif not isinstance_of(node, PLUMBING):
            current_family = None
        if current_family is None:
            words.append(_step(previous, node, following))
        previous = node
    if current_family == "sqlalchemy":
        words.append("its connection")
    return tuple([word for word in words if word])


def _family(node: Any) -> str | None:
    kind = type(node)
    if is_of_sqlalchemy(kind):
        return "sqlalchemy"
    if is_thread_local(kind):
        return "thread-local"
    if _is_queue(kind) or is_future(kind):
        return None
    package = module_of(kind).partition(".")[0].lstrip("_")
    if package in ("asyncio", "uvloop"):  # a transport, say, and its protocol
        return "asyncio"
    return "contextlib" if package == "contextlib" else None


def _is_queue(kind: type) -> bool:
    """Whether it is a queue, or a job in one: with its parts it is one container."""
    name, module = class_name(kind), module_of(kind)
    if name in ("_WorkItem", "Handle", "TimerHandle"):
        return module.startswith(("concurrent.", "asyncio."))
    return module in ("queue", "_queue", "asyncio.queues")  # SimpleQueue is in C


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


def attribute_name(node: Any, value: Any) -> str | None:
    """The name of the attribute; None if code cannot have written it so."""
    name = entry_name(attributes_of(node) or {}, value)
    name = name or _name_of(_slots(node), value)
    return name if name and name.isidentifier() else None


def entry_name(entries: dict[Any, Any], value: Any) -> str | None:
    """The key of a value, if it is a string. For code only: a key may be data."""
    return _name_of(dict.items(entries), value)


def _step(previous: Any, node: Any, following: Any) -> str | None:
    """The step from ``node`` to ``following``; None if it needs no words."""
    if _is_queue(type(node)) or _is_queue(type(previous)):
        return None
    if node is attributes_of(previous):
        name = attribute_name(previous, following)
        return f"attribute '{name}'" if name else "an attribute"
    for kinds, describe_step in _DESCRIBERS:
        if isinstance_of(node, kinds):
            return describe_step(node, following)
    return _instance_step(node, following)


def _dict_step(*_: Any) -> str:
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
    if attributes_of(node) is following:
        return None
    name = attribute_name(node, following)
    if name:
        return f"attribute '{name}'"
    if is_future(kind):
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
