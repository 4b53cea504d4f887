"""The zoo: every fault found with the right kind and line, no innocent accused.

Each case runs in its own process, several at a time; ``python tests/zoo/table.py``
prints them all. See ``zoo/registry.py`` for what a case is.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from zoo.harness import postgres_when_needed, run_all
from zoo.judge import Result
from zoo.registry import Case, load

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.processes]

CASES = load()
NAMES = sorted(CASES, key=list(CASES).index)


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Result]]]:
    """All cases that this run has selected, begun at once."""
    here = {
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_case"
    }
    cases: list[Case] = [CASES[name] for name in NAMES if name in here]
    with postgres_when_needed() as server:
        futures = run_all(cases, server)
        yield futures
        for future in futures.values():
            future.cancel()
        for future in futures.values():
            if not future.cancelled():
                future.result()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_case(name: str, results: dict[str, Future[Result]]) -> None:
    result = results[name].result()
    assert result.ok, "\n" + result.describe()


def test_the_zoo_is_large_enough() -> None:
    innocents = [case for case in CASES.values() if case.innocent]
    assert len(innocents) >= 32
    assert len(CASES) - len(innocents) >= 32


def test_every_mark_that_a_case_names_is_there() -> None:
    for case in CASES.values():
        case.lines((*case.marks, *case.bystanders))
