"""What a fixture of a wider scope has in hand: all that it can close at its end.

That is its value, the variables of its generator, its finalizers, and what its code
names in its module or class: the session that ``setup_class`` puts there, the registry
that ``teardown_module`` empties. What else these keep is none of the fixture's.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from poolwatch.keeping.references import pools_of_drivers

_MOST_NODES = 50_000
"""Objects that are looked at from one fixture."""
_NOT_THROUGH = ("_pytest.", "pluggy.", "poolwatch.", "logging")
"""Modules whose objects lead everywhere."""
_ENDS = ModuleType | type | str | bytes | int | float | asyncio.AbstractEventLoop
"""An event loop knows all tasks: it cancels them, nobody has them in hand."""

Homes = Sequence[Mapping[str, Any]]
"""Where names are looked up: a module's, a class's."""


def in_hand(definition: Any, item: Any, wanted: set[int]) -> list[int]:
    """Which of these objects, by id, the fixture keeps alive.

    ``item`` is the first test that asked for it.
    """
    finalizers = list(definition._finalizers)  # noqa: SLF001 - no other way
    roots: list[Any] = []
    if definition.cached_result is not None:
        roots.append(definition.cached_result[0])
    code: list[Any] = [definition.func]
    for each in finalizers:
        if isinstance(each, functools.partial):
            roots += (value for value in each.args if hasattr(value, "gi_frame"))
        elif _function(each) is not None:
            roots.append(each)
            code.append(each)
    roots += _named(code, definition.scope, item)
    return _reached(roots, wanted)


def _named(code: Iterable[Any], scope: str, item: Any) -> Iterator[Any]:
    """What functions name, and the functions of the same homes that they name."""
    begin = [each for value in code for each in _with_enclosed(value)]
    homes: list[Mapping[str, Any]] = []
    if scope == "class" and getattr(item, "cls", None) is not None:
        homes += map(vars, item.cls.__mro__)
    if scope in ("class", "module") and getattr(item, "module", None) is not None:
        homes.append(vars(item.module))
    homes += (each.__globals__ for each in begin if not _leads_everywhere(each))
    seen: set[int] = set()
    left = list(begin)
    while left:
        function = left.pop()
        if id(function.__code__) in seen:
            continue
        seen.add(id(function.__code__))
        for name in _names(function.__code__):
            for home in homes:
                if name in home:
                    value = home[name]
                    yield value
                    left += _at_home(value, homes)


def _at_home(value: Any, homes: Homes) -> list[FunctionType]:
    """A function that was written there, not one that was imported."""
    function = _function(value)
    if function is None or all(function.__globals__ is not home for home in homes):
        return []
    return _with_enclosed(function)


def _with_enclosed(value: Any) -> list[FunctionType]:
    """The function of a callable, those in its closure, and those that it wraps."""
    found: list[FunctionType] = []
    left = [value]
    while left:
        function = _function(left.pop())
        if function is not None and function not in found:
            found.append(function)
            left += _enclosed(function)
            left.append(function.__dict__.get("__wrapped__"))
    return found


def _function(value: Any) -> FunctionType | None:
    if issubclass(type(value), classmethod | staticmethod | MethodType):
        value = value.__func__
    return value if type(value) is FunctionType else None


def _enclosed(function: FunctionType) -> list[Any]:
    """What is in its closure by now."""
    return [
        each.cell_contents
        for each in function.__closure__ or ()
        if gc.get_referents(each)  # else it is empty
    ]


def _names(code: CodeType) -> set[str]:
    """Of globals and attributes, and whatever may be one (``setattr(cls, "name")``)."""
    names = set(code.co_names)
    for each in code.co_consts:
        if isinstance(each, str):
            names.add(each)
        elif isinstance(each, CodeType):
            names |= _names(each)
    return names


def _reached(roots: Iterable[Any], wanted: set[int]) -> list[int]:
    """Which of these objects, by id, are kept alive from there."""
    seen: set[int] = set()
    found: list[int] = []
    layer, pools = list(roots), pools_of_drivers()
    while layer and len(seen) < _MOST_NODES and len(found) < len(wanted):
        following: list[Any] = []
        for each in layer:
            if id(each) in seen:
                continue
            seen.add(id(each))
            if id(each) in wanted:
                found.append(id(each))
            elif not issubclass(type(each), pools):  # they keep what they have lent
                following += _onward(each)
        layer = following
    return found


def _onward(each: Any) -> Iterable[Any]:
    if isinstance(each, FunctionType):
        return (*(each.__closure__ or ()), *(each.__defaults__ or ()))
    if type(each) is threading.local:
        return list(vars(each).values())  # this thread's
    if issubclass(type(each), _ENDS):
        return ()
    return () if _leads_everywhere(each) else gc.get_referents(each)


def _leads_everywhere(each: Any) -> bool:
    where = each if type(each) is FunctionType else type(each)
    return str(getattr(where, "__module__", "")).startswith(_NOT_THROUGH)
