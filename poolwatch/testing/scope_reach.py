"""What the code names that ends a fixture: what comes after its ``yield``.

Also what the functions name that this calls, as far as they are the user's own. A name
is one of a module or a class: that of the code, or one that is named itself, as
``shop`` and ``sessions`` in ``shop.sessions.clear()``. The code before the ``yield``
may name all of an application, and has nothing to close.
"""

from __future__ import annotations

import dis
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import isasyncgenfunction, isgeneratorfunction
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from poolwatch.diagnosis.references.follow import class_members
from poolwatch.stacks.code_owner import Owner, owner_of

_MOST_FUNCTIONS = 1000
"""That are read for one fixture."""
_NOTHING = object()

Spaces = Sequence[Mapping[str, Any]]
"""Where names are looked up."""


def named_at_the_end(
    fixture: Any, finalizers: Iterable[Any], homes: Spaces
) -> Iterator[Any]:
    """All values that this code names.

    ``fixture`` is its function, ``homes`` are where it may have put something: the
    names of the class and module that it is for.
    """
    left = [(each, homes) for each in _with_enclosed(fixture) if _ends(each)]
    left += [(each, homes) for value in finalizers for each in _with_enclosed(value)]
    seen: set[int] = set()
    while left and len(seen) < _MOST_FUNCTIONS:
        function, around = left.pop()
        if id(function.__code__) in seen:
            continue
        seen.add(id(function.__code__))
        its_own = _with_enclosed(function)  # pytest's wrappers call what they enclose
        for value, where in _named(function, around):
            yield value
            called = _function(value)
            if called is not None and (called in its_own or _is_users(called)):
                left += [(each, [*homes, where]) for each in _with_enclosed(called)]


def _named(function: FunctionType, around: Spaces) -> Iterator[tuple[Any, Any]]:
    """Values, and among which names each was found."""
    names = _names(function.__code__, after_yield=_ends(function))
    spaces = [*around, function.__globals__, _enclosed(function)]
    seen: set[int] = set()
    for space in spaces:  # there are more and more
        for name in names:
            value = space.get(name, _NOTHING)
            if value is not _NOTHING:
                yield value, space
                if id(value) not in seen:
                    seen.add(id(value))
                    spaces += _within(value)


def _names(code: CodeType, *, after_yield: bool = False) -> set[str]:
    """Of variables that are not local, and of attributes.

    A string may be one, too: ``getattr(cls, "name")``.
    """
    names: set[str] = set()
    for each in dis.get_instructions(code):
        if after_yield:
            after_yield = each.opname != "YIELD_VALUE"
        elif isinstance(each.argval, CodeType):
            names |= _names(each.argval)
        elif each.opcode in _NAMING and isinstance(each.argval, str):
            names.add(each.argval)
    return names


_NAMING = frozenset({*dis.hasname, *dis.hasfree, *dis.hasconst})


def _function(value: Any) -> FunctionType | None:
    """The function of one, or of a method; None for everything else."""
    if issubclass(type(value), classmethod | staticmethod | MethodType):
        value = value.__func__
    return value if type(value) is FunctionType else None


def _ends(function: FunctionType) -> bool:
    return isgeneratorfunction(function) or isasyncgenfunction(function)


def _is_users(function: FunctionType) -> bool:
    where = owner_of(function.__code__.co_filename, function.__module__)
    return where is Owner.USER


def _with_enclosed(value: Any) -> list[FunctionType]:
    """The function of a callable, those in its closure, and those that it wraps."""
    found: list[FunctionType] = []
    left = [value]
    while left:
        function = _function(left.pop())
        if function is not None and function not in found:
            found.append(function)
            left += _enclosed(function).values()
            left.append(function.__dict__.get("__wrapped__"))
    return found


def _enclosed(function: FunctionType) -> dict[str, Any]:
    """What is in its closure by now."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if gc.get_referents(cell)}


def _within(value: Any) -> list[Mapping[str, Any]]:
    """The names of a module or class of the user's own."""
    if issubclass(type(value), type):
        return [class_members(value)]
    if type(value) is ModuleType:
        file, name = (vars(value).get(key) for key in ("__file__", "__name__"))
        if isinstance(file, str) and owner_of(file, name) is Owner.USER:
            return [vars(value)]
    return []
