"""The zoo: every fault found with the right kind and line, no innocent accused.

Each case runs in its own process, several at a time; ``python tests/zoo/table.py``
prints them all. See ``zoo/registry.py`` for what a case is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from zoo.harness import running
from zoo.judge import Result
from zoo.registry import load

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.processes]

CASES = load()
NAMES = sorted(CASES, key=list(CASES).index)


AHEAD = 6
"""Cases that are begun early: most of their time they wait."""


@pytest.fixture(scope="session")
def result_of(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Result]]:
    """Return the result of a case, and begin those that this run has next."""
    cases = [
        CASES[item.callspec.params["name"]]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_case"
    ]
    with running(cases) as begin:

        def result_of(name: str) -> Result:
            at = cases.index(CASES[name])
            result, *_ = [begin(case) for case in cases[at : at + AHEAD]]
            return result.result()

        yield result_of


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_case(name: str, result_of: Callable[[str], Result]) -> None:
    result = result_of(name)
    assert result.ok, "\n" + result.describe()


def test_the_zoo_is_large_enough() -> None:
    innocents = [case for case in CASES.values() if case.innocent]
    assert len(innocents) >= 32
    assert len(CASES) - len(innocents) >= 32


def test_every_mark_that_a_case_names_is_there() -> None:
    for case in CASES.values():
        case.lines((*case.marks, *case.bystanders))
