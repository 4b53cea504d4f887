"""Finds the objects that a class, module or session fixture can close at its teardown.

The search starts at the value of the fixture, the variables of its generator, its
finalizers, and the objects that its teardown names: e.g. the session that
``setup_class`` stores in its class and ``teardown_class`` closes, or the registry that
``teardown_module`` clears. Other objects of the module or class do not count.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

from poolwatch.diagnosis.references.attributes import module_of
from poolwatch.diagnosis.references.follow import pools_of_drivers
from poolwatch.testing.teardown_names import named_in_teardown

_MAX_NODES = 50_000
"""Maximum number of objects visited per fixture."""
_OPAQUE_PACKAGES = frozenset({"_pytest", "pluggy", "poolwatch", "logging"})
"""Packages whose objects are not followed: they lead everywhere."""
_NOT_FOLLOWED = (
    ModuleType | type | str | bytes | int | float | asyncio.AbstractEventLoop
)
"""Types that are not followed. An event loop refers to all tasks, but only cancels
them."""


def reachable_objects(definition: Any, item: Any, wanted: set[int]) -> list[int]:
    """Return the ids in ``wanted`` of the objects that the fixture can reach.

    ``item`` is the first test that requested the fixture.
    """
    finalizers = list(definition._finalizers)  # noqa: SLF001 - no public way
    roots = list(finalizers)  # pytest's finalizer refers to the generator
    if definition.cached_result is not None:
        roots.append(definition.cached_result[0])
    namespaces = _namespaces(definition.scope, item)
    roots += named_in_teardown(definition.func, finalizers, namespaces)
    return _reachable(roots, wanted)


def _namespaces(scope: str, item: Any) -> list[Mapping[str, Any]]:
    """The namespaces a fixture may store in: class and module of its first test."""
    namespaces: list[Mapping[str, Any]] = []
    if scope == "class" and getattr(item, "cls", None) is not None:
        namespaces += map(vars, item.cls.__mro__)
    if scope in ("class", "module") and getattr(item, "module", None) is not None:
        namespaces.append(vars(item.module))
    return namespaces


def _reachable(roots: Iterable[Any], wanted: set[int]) -> list[int]:
    """Return the ids in ``wanted`` of the objects that ``roots`` lead to."""
    seen: set[int] = set()
    found: list[int] = []
    layer, pools = list(roots), pools_of_drivers()
    while layer and len(seen) < _MAX_NODES and len(found) < len(wanted):
        next_layer: list[Any] = []
        for each in layer:
            if id(each) in seen:
                continue
            seen.add(id(each))
            if id(each) in wanted:
                found.append(id(each))
            elif not issubclass(type(each), pools):  # those refer to all connections
                next_layer += _references(each)
        layer = next_layer
    return found


def _references(each: Any) -> Iterable[Any]:
    if isinstance(each, FunctionType):
        return (*(each.__closure__ or ()), *(each.__defaults__ or ()))
    if type(each) is threading.local:
        return list(vars(each).values())  # those of this thread
    if issubclass(type(each), _NOT_FOLLOWED):
        return ()
    if module_of(type(each)).partition(".")[0] in _OPAQUE_PACKAGES:
        return ()
    return gc.get_referents(each)
