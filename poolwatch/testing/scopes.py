"""Wider fixtures: those of class, module, package or session scope.

Connections that such a fixture checks out are judged at the end of its scope. So are
those that a test checks out through an object of the fixture and leaves open, because
the fixture may close them: e.g. a session that a whole module shares, and that checks
out its connection at its first statement. The leak is still reported for that test.
"""

from __future__ import annotations

from typing import Any

from poolwatch.testing.owners import Owner, Owners

_XUNIT = {
    "_xunit_setup_function_fixture_": "setup_function of {}",
    "_xunit_setup_method_fixture_": "setup_method of {}",
    "_xunit_setup_class_fixture_": "setup_class of {}",
    "_xunit_setup_module_fixture_": "setup_module of {}",
    "_unittest_setUpClass_fixture_": "setUpClass of {}",
    "_unittest_setUpModule_fixture_": "setUpModule of {}",
}
"""Prefixes of the names that pytest gives to the fixtures it makes of these."""


class WiderFixture:
    """One wider fixture."""

    def __init__(self, definition: Any, request: Any) -> None:
        item = request._pyfuncitem  # noqa: SLF001 - the first test that requested it
        self.owner = Owner("fixture", item, fixture_name(definition))
        self.postponed_owners: list[Owner] = []
        """Holds that tests left open and that the fixture may close, by test."""
        self.definition = definition

    @property
    def is_set_up(self) -> bool:
        """Whether the setup has ended, even if it failed."""
        return self.definition.cached_result is not None

    def has_failed(self) -> bool:
        """Whether its setup ended with an exception: pytest keeps its traceback."""
        cached = self.definition.cached_result
        return cached is not None and cached[2] is not None

    def postpone(self, owner: Owner, owners: Owners) -> None:
        """Move the holds that the fixture can reach from a test to this fixture."""
        # loaded for the first suspect
        from poolwatch.testing.reachable import reachable_objects

        wanted = {
            id(proxy): hold
            for hold in list(owner.open_holds)
            if (proxy := hold.proxy()) is not None
        }
        postponed = owner.without_holds()
        test = self.owner.node
        for found_id in reachable_objects(self.definition, test, set(wanted)):
            hold = wanted[found_id]
            pool = owner.open_holds.pop(hold, None)
            if pool is not None:
                owners.charge(postponed, hold, pool)
        if postponed.open_holds:
            self.postponed_owners.append(postponed)


def fixture_name(definition: Any) -> str:
    """The fixture with its scope and location; the function, for ``setup_class``."""
    name = definition.argname
    for prefix, words in _XUNIT.items():
        if name.startswith(prefix):
            return words.format(name.removeprefix(prefix).split(".")[-1])
    location = getattr(definition, "baseid", "") or ""
    suffix = f", {location}" if location else ""
    return f"fixture {name!r} ({definition.scope} scope{suffix})"
