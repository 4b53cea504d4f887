"""What a fixture of a wider scope has in hand: all that it can close at its end.

That is its value, the variables of its generator, its finalizers, and what the code of
these names: the session that ``setup_class`` puts into its class and ``teardown_class``
closes, the registry that ``teardown_module`` empties. What else modules and classes
keep is none of the fixture's.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

from poolwatch.diagnosis.references.follow import module_of, pools_of_drivers
from poolwatch.testing.scope_reach import named_at_the_end

_MOST_NODES = 50_000
"""Objects that are looked at from one fixture."""
_NOT_THROUGH = frozenset({"_pytest", "pluggy", "poolwatch", "logging"})
"""Packages whose objects lead everywhere."""
_ENDS = ModuleType | type | str | bytes | int | float | asyncio.AbstractEventLoop
"""An event loop knows all tasks: it cancels them, nobody has them in hand."""


def in_hand(definition: Any, item: Any, wanted: set[int]) -> list[int]:
    """Which of these objects, by id, the fixture keeps alive.

    ``item`` is the first test that asked for it.
    """
    finalizers = list(definition._finalizers)  # noqa: SLF001 - no other way
    roots = list(finalizers)  # pytest's have the generator
    if definition.cached_result is not None:
        roots.append(definition.cached_result[0])
    homes = _homes(definition.scope, item)
    roots += named_at_the_end(definition.func, finalizers, homes)
    return _reached(roots, wanted)


def _homes(scope: str, item: Any) -> list[Mapping[str, Any]]:
    """Where a fixture may put things: the class and module of its first user."""
    homes: list[Mapping[str, Any]] = []
    if scope == "class" and getattr(item, "cls", None) is not None:
        homes += map(vars, item.cls.__mro__)
    if scope in ("class", "module") and getattr(item, "module", None) is not None:
        homes.append(vars(item.module))
    return homes


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
    if module_of(type(each)).partition(".")[0] in _NOT_THROUGH:
        return ()
    return gc.get_referents(each)
