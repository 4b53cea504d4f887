"""Fixtures of wider scopes, while they stand.

What such a fixture takes is its own, until its scope ends. And what a test takes
through an object of such a fixture, and leaves there (a session that a whole module
shares begins at its first statement), is not judged before that fixture is over: it is
the one to close it. The test answers for it all the same.
"""

from __future__ import annotations

from typing import Any

from poolwatch.testing.owners import Owner, Owners

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

    @property
    def is_up(self) -> bool:
        """Whether its setup is over, well or not."""
        return self.definition.cached_result is not None

    def has_failed(self) -> bool:
        """Whether its setup ended with an exception: pytest keeps its traceback."""
        cached = self.definition.cached_result
        return cached is not None and cached[2] is not None

    def take_over(self, owner: Owner, owners: Owners) -> None:
        """Take the holds that the fixture reaches off that owner."""
        from poolwatch.testing.in_hand import in_hand  # now there is a suspect

        wanted = {
            id(proxy): hold
            for hold in list(owner.out)
            if (proxy := hold.proxy()) is not None
        }
        rest = owner.rest()
        for found in in_hand(self.definition, self.owner.node, set(wanted)):
            hold = wanted[found]
            book = owner.out.pop(hold, None)
            if book is not None:
                owners.charge(rest, hold, book)
        if rest.out:
            self.entrusted.append(rest)


def _name(definition: Any) -> str:
    name = definition.argname
    for prefix, words in _XUNIT.items():
        if name.startswith(prefix):
            return words.format(name.removeprefix(prefix).split(".")[-1])
    home = getattr(definition, "baseid", "") or ""
    where = f", {home}" if home else ""
    return f"fixture {name!r} ({definition.scope} scope{where})"
