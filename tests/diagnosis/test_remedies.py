"""Remedies: each circumstance, the findings it is said for, and the words.

``python -m pytest tests/diagnosis/test_remedies.py -s`` prints the table.
"""

from __future__ import annotations

from typing import get_args

import fakes
import pytest

from poolwatch.diagnosis.circumstances import Circumstance, CircumstanceKind
from poolwatch.diagnosis.evidence import HoldEvidence, JudgedHold, PoolEvidence
from poolwatch.diagnosis.findings import pool_findings
from poolwatch.diagnosis.remedies import remedy_for
from poolwatch.model import Collected, Finding, FindingKind, NestedRequests

SITE, LINE = fakes.frame("/srv/app/a.py:1"), fakes.frame("/srv/app/b.py:22")
OUTER = fakes.frame("/srv/app/c.py:3")
WITH_BLOCK = "Use a with block"

TABLE: list[tuple[CircumstanceKind, str, str, str]] = [
    (
        "used after close",
        "close()",
        "leaked.abandoned",
        "closed, by close() at app/b.py:22",
    ),
    ("used after close", "its with block", "long_hold", "closed, by its with block at"),
    ("lazy load", "Order.lines", "leaked.collected", "lazy load of Order.lines"),
    ("refresh", "Order.total", "held_across_io", "expire_on_commit=False"),
    ("session on connection", "", "leaked.orphaned", "bound to a Connection"),
    ("only commits", "putconn()", "leaked.abandoned", "call putconn() in a finally"),
    ("scoped session", "", "leaked.abandoned", "remove() at the end of each job"),
    ("request", "", "held_across_io", "before the response is sent"),
    ("exit stack", "", "leaked.orphaned", "use the stack in a with block"),
    ("generator", "contextlib.closing()", "leaked.abandoned", "close the generator"),
    ("coroutine", "", "leaked.orphaned", "await it to its end"),
    ("thread-local", "", "leaked.abandoned", "as long as its thread lives"),
    ("context variable", "", "leaked.abandoned", "A context variable keeps it"),
    ("cleanup without effect", "", "leaked.orphaned", "The cleanup at app/b.py:22"),
    ("task cancelled", "", "leaked.orphaned", "shield that from cancellation"),
    ("with block", "", "leaked.abandoned", "The with block at app/b.py:22"),
    ("no reference", ", which is switched off", "leaked.abandoned", "collector, which"),
    ("own return", "release()", "leaked.orphaned", "Return the connection with rel"),
]


def said(kind: FindingKind, *circumstances: Circumstance) -> Finding:
    evidence = HoldEvidence(1.0, 0.5, circumstances=circumstances)
    verdict = "leaked" if kind.startswith("leaked") else "long"
    hold = fakes.hold(site=SITE, verdict=verdict, evidence=("proof",))
    judged = [JudgedHold(hold, kind, evidence)]
    (finding,) = pool_findings(PoolEvidence(fakes.pool(), judged))
    return finding


@pytest.mark.parametrize(("circumstance", "name", "kind", "words"), TABLE)
def test_each_circumstance_has_its_remedy(
    circumstance: CircumstanceKind, name: str, kind: FindingKind, words: str
) -> None:
    finding = said(kind, Circumstance(circumstance, LINE, name))
    print(f"{kind:<17} {circumstance:<23} {finding.remedy}")
    assert words in finding.remedy
    assert "{" not in finding.remedy
    assert WITH_BLOCK not in finding.remedy
    generic = said(kind).remedy
    assert finding.remedy != generic


def test_every_circumstance_is_in_the_table() -> None:
    assert {each[0] for each in TABLE} == set(get_args(CircumstanceKind))


@pytest.mark.parametrize(
    ("kind", "circumstance"),
    [
        ("long_hold", "scoped session"),  # it may be in the middle of its job
        ("held_across_io", "only commits"),
        ("long_hold", "with block"),
        ("leaked.orphaned", "request"),
        ("leaked.collected", "no reference"),
        ("leaked.collected", "own return"),  # it has words of its own for this
    ],
)
def test_a_remedy_that_does_not_fit_is_not_said(
    kind: FindingKind, circumstance: CircumstanceKind
) -> None:
    assert said(kind, Circumstance(circumstance, LINE)).remedy == said(kind).remedy


def test_the_most_special_circumstance_decides() -> None:
    reused = Circumstance("used after close", LINE)
    block = Circumstance("with block", SITE)
    for order in ([reused, block], [block, reused]):
        assert "used again" in remedy_for("leaked.abandoned", order, "")


def test_without_a_circumstance_the_finding_has_its_own_remedy() -> None:
    assert WITH_BLOCK in said("leaked.abandoned").remedy


def test_what_was_collected_has_circumstances_too() -> None:
    circumstances = {SITE: (Circumstance("refresh", name="Order.total"),)}
    (finding,) = pool_findings(
        PoolEvidence(
            fakes.pool(), collected=[Collected(SITE, 1)], collected_in=circumstances
        )
    )
    assert "Order.total" in finding.remedy


@pytest.mark.parametrize(
    ("unused", "words"), [(True, "not at all"), (False, "Pass the connection")]
)
def test_an_outer_connection_that_did_nothing(unused: bool, words: str) -> None:
    noted = NestedRequests(
        OUTER, SITE, (None, None), "thread a", 1.0, 3, 2, outer_unused=unused
    )
    (finding,) = pool_findings(PoolEvidence(fakes.pool(), nested=[noted]))
    assert words in finding.remedy


def test_what_a_framework_has_checked_out_is_closed_its_way() -> None:
    """No with block of the application would return it."""
    seen = [Circumstance("no reference", None, "")]
    words = remedy_for("leaked.orphaned", seen, "", framework="thread")
    assert "connections.close_all()" in words
