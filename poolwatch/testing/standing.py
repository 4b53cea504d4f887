"""Fixtures of wider scopes, while they stand.

What such a fixture takes is its own, until its scope ends. And what a test takes
through an object of such a fixture, and leaves there (a session that a whole module
shares begins at its first statement), is not judged before that fixture is over: it is
the one to close it. The test answers for it all the same.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from poolwatch.testing.owners import Owner

_MOST_NODES = 50_000
"""Objects that are looked at from one fixture."""
_NOT_THROUGH = ("_pytest.", "pluggy.", "poolwatch.", "logging")
"""Modules whose objects lead everywhere."""
_XUNIT = {
    "_xunit_setup_class_fixture_": "setup_class of {}",
    "_xunit_setup_module_fixture_": "setup_module of {}",
    "_unittest_setUpClass_fixture_": "setUpClass of {}",
    "_unittest_setUpModule_fixture_": "setUpModule of {}",
}
"""How pytest calls the fixtures that it makes of these."""


class Standing:
    """One fixture of a wider scope."""

    def __init__(self, definition: Any, request: Any) -> None:
        item = request._pyfuncitem  # noqa: SLF001 - the first test to ask for it
        self.owner = Owner("fixture", item, _name(definition))
        self.entrusted: list[Owner] = []
        """What tests have left with it."""
        self.definition = definition
        self._home = _home(definition, item)

    @property
    def is_up(self) -> bool:
        """Whether its setup is over, well or not."""
        return self.definition.cached_result is not None

    def has_failed(self) -> bool:
        """Whether its setup ended with an exception: pytest keeps its traceback."""
        cached = self.definition.cached_result
        return cached is not None and cached[2] is not None

    def take_over(self, owner: Owner) -> None:
        """Take what is reached from here off that owner."""
        wanted = {
            id(proxy): hold
            for hold in list(owner.out)
            if (proxy := hold.proxy()) is not None
        }
        rest = owner.rest()
        for found in _reached(self._roots(), set(wanted)):
            hold = wanted[found]
            lender = owner.out.pop(hold, None)
            if lender is not None:
                hold.account = rest
                rest.out[hold] = lender
        if rest.out:
            self.entrusted.append(rest)

    def _roots(self) -> Iterator[Any]:
        """Its value, what its generator has in hand, and where setup_class puts it."""
        cached = self.definition.cached_result
        if cached is not None:
            yield cached[0]
        for finalizer in list(self.definition._finalizers):  # noqa: SLF001 - no other way
            if isinstance(finalizer, functools.partial):
                yield from (
                    each for each in finalizer.args if hasattr(each, "gi_frame")
                )
        if self._home is not None:
            yield from list(vars(self._home).values())


def _name(definition: Any) -> str:
    name = definition.argname
    for prefix, words in _XUNIT.items():
        if name.startswith(prefix):
            return words.format(name.removeprefix(prefix).split(".")[-1])
    home = getattr(definition, "baseid", "") or ""
    where = f", {home}" if home else ""
    return f"fixture {name!r} ({definition.scope} scope{where})"


def _home(definition: Any, item: Any) -> Any:
    """The class or module that is a fixture's to put things in."""
    kind = {"class": "cls", "module": "module"}.get(definition.scope)
    return getattr(item, kind, None) if kind is not None else None


def _reached(roots: Iterable[Any], wanted: set[int]) -> list[int]:
    """Which of these objects, by id, are kept alive from there."""
    from poolwatch.keeping.references import pools_of_drivers  # now there is a suspect

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
    kind = type(each)
    if issubclass(kind, ModuleType | type | str | bytes | int | float):
        return ()
    if str(getattr(kind, "__module__", "")).startswith(_NOT_THROUGH):
        return ()
    return gc.get_referents(each)
