"""A connection whose thread or task has ended, on every kind of pool."""

from __future__ import annotations

from contextlib import suppress

import pytest
from adapters.kinds.kind import KEPT
from fix_core import Look
from helpers import until


@pytest.fixture
def pool(kind, postgres):
    made = kind.make(postgres, size=2, timeout=1.0)
    yield made
    with suppress(Exception):
        kind.run(kind.close, made)


def test_orphaned(kind, pool, instrument):
    """The thread or task has ended, and nothing that runs has its connection: the pool
    itself, which may well refer to it, is nobody."""
    watch = instrument(pool)
    kind.begin(kind.keep, pool).result(30)
    look = until(lambda: (it := Look()).kinds() == ["leaked.orphaned"] and it)
    (hold,) = look.holds(watch)
    (finding,) = look.process.findings
    assert finding.holds == (hold.id,)
    assert [site.function for site in finding.sites] == ["take"]
    assert hold.verdict == "leaked"
    kind.run(kind.give, pool, KEPT.pop())
    assert Look().kinds() == []
