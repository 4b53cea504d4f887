"""Finds the objects that the teardown of a fixture, the code after ``yield``, names.

User functions that this code calls are searched, too. Names are looked up in modules
and classes: those around the code, and those that it names, such as ``shop`` in
``shop.sessions.clear()``. The code before the ``yield`` is ignored: it may name all of
an application, and closes nothing.
"""

from __future__ import annotations

import dis
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import isasyncgenfunction, isgeneratorfunction
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from poolwatch.diagnosis.references.follow import class_members
from poolwatch.stacks.code_owner import CodeOwner, code_owner_of

_MAX_FUNCTIONS = 1000
"""Maximum number of functions read per fixture."""
_MISSING = object()

Namespaces = Sequence[Mapping[str, Any]]
"""The namespaces in which names are looked up."""


def named_in_teardown(
    fixture: Any, finalizers: Iterable[Any], namespaces: Namespaces
) -> Iterator[Any]:
    """Return all values that the teardown of a fixture names.

    ``fixture`` is its function. ``namespaces`` are those of its class and module, in
    which it may have stored something.
    """
    pending = [
        (each, namespaces) for each in _functions_of(fixture) if _is_generator(each)
    ]
    pending += [
        (each, namespaces) for value in finalizers for each in _functions_of(value)
    ]
    seen: set[int] = set()
    while pending and len(seen) < _MAX_FUNCTIONS:
        function, outer = pending.pop()
        if id(function.__code__) in seen:
            continue
        seen.add(id(function.__code__))
        # pytest's wrappers call functions in their closure
        enclosed = _functions_of(function)
        for value, space in _named(function, outer):
            yield value
            callee = _function(value)
            if callee is not None and (callee in enclosed or _is_user_code(callee)):
                pending += [
                    (each, [*namespaces, space]) for each in _functions_of(callee)
                ]


def _named(function: FunctionType, outer: Namespaces) -> Iterator[tuple[Any, Any]]:
    """Return the values that a function names, each with its namespace."""
    names = _names(function.__code__, after_yield=_is_generator(function))
    spaces = [*outer, function.__globals__, _closure(function)]
    seen: set[int] = set()
    for space in spaces:  # grows during the loop
        for name in names:
            value = space.get(name, _MISSING)
            if value is not _MISSING:
                yield value, space
                if id(value) not in seen:
                    seen.add(id(value))
                    spaces += _namespaces_of(value)


def _names(code: CodeType, *, after_yield: bool = False) -> set[str]:
    """Return the names of attributes and of variables that are not local.

    String constants count, too: ``getattr(cls, "name")``.
    """
    names: set[str] = set()
    for each in dis.get_instructions(code):
        if after_yield:
            after_yield = each.opname != "YIELD_VALUE"
        elif isinstance(each.argval, CodeType):
            names |= _names(each.argval)
        elif isinstance(each.argval, str) and _LOCAL not in each.opname:
            names.add(each.argval)
    return names


_LOCAL = "_FAST"
"""In the names of opcodes for local variables. ``dis.hasfree`` lacks LOAD_DEREF on
Python 3.14."""


def _function(value: Any) -> FunctionType | None:
    """The function of a function or method; None for any other object."""
    if issubclass(type(value), classmethod | staticmethod | MethodType):
        value = value.__func__
    return value if type(value) is FunctionType else None


def _is_generator(function: FunctionType) -> bool:
    return isgeneratorfunction(function) or isasyncgenfunction(function)


def _is_user_code(function: FunctionType) -> bool:
    owner = code_owner_of(function.__code__.co_filename, function.__module__)
    return owner is CodeOwner.USER


def _functions_of(value: Any) -> list[FunctionType]:
    """The function of a callable, functions in its closure, and functions it wraps."""
    found: list[FunctionType] = []
    pending = [value]
    while pending:
        function = _function(pending.pop())
        if function is not None and function not in found:
            found.append(function)
            pending += _closure(function).values()
            pending.append(function.__dict__.get("__wrapped__"))
    return found


def _closure(function: FunctionType) -> dict[str, Any]:
    """The variables of a function's closure that have a value."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if gc.get_referents(cell)}


def _namespaces_of(value: Any) -> list[Mapping[str, Any]]:
    """The namespace of a class, or of a module of the user's."""
    if issubclass(type(value), type):
        return [class_members(value)]
    if type(value) is ModuleType:
        file, name = (vars(value).get(key) for key in ("__file__", "__name__"))
        if isinstance(file, str) and code_owner_of(file, name) is CodeOwner.USER:
            return [vars(value)]
    return []
