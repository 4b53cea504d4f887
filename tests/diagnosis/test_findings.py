"""The list of findings: each kind once, and nothing of a healthy pool."""

from __future__ import annotations

import json
from typing import get_args

import fakes
import pytest

from poolwatch.diagnosis.evidence import (
    HoldEvidence,
    JudgedHold,
    OpenWait,
    PoolEvidence,
    Search,
    ServerEvidence,
)
from poolwatch.diagnosis.findings import (
    pool_findings,
    process_findings,
    with_server_findings,
)
from poolwatch.model import (
    Collected,
    FindingKind,
    InheritedUse,
    MostlyOutsideSql,
    NestedRequests,
    PoolOrigin,
)
from poolwatch.protocol import document as wire

SITE, INNER = fakes.frame("/srv/app/a.py:1"), fakes.frame("/srv/app/b.py:2")


def judged(kind=None, id="h1", owner="one", **evidence):  # noqa: A002
    """A hold of a running function, unless the evidence says otherwise."""
    verdict = "leaked" if (kind or "").startswith("leaked") else "ok"
    hold = fakes.hold(id, site=SITE, now=(SITE,), verdict=verdict, evidence=("proof",))
    seen = HoldEvidence(held_s=1.0, long_after=30.0, owner=owner, **evidence)
    return JudgedHold(hold, kind, seen)


def waiting(owner="one"):
    return OpenWait(fakes.wait(site=INNER), owner)


FULL = fakes.pool(size=1, max_overflow=0)
BUSY = fakes.pool(size=1, max_overflow=0, hold_s=fakes.times(1.0))
WORN = fakes.pool(
    counters=fakes.counters(checkouts=99, connects=99, closes=99),
    create_s=fakes.times(0.1),
)
NESTED = judged(one_of_several=True)
NOTED = NestedRequests(SITE, INNER, (None, None), "thread MainThread", 1.0, 3, 2)


@pytest.mark.parametrize(
    ("kinds", "evidence"),
    [
        ([], {}),
        ([], {"holds": [judged(), judged(id="h2", owner="two")]}),
        (["leaked.abandoned"], {"holds": [judged("leaked.abandoned")]}),
        (["leaked.orphaned"], {"holds": [judged("leaked.orphaned")]}),
        (["long_hold"], {"holds": [judged("long_hold")]}),
        (["held_across_io"], {"holds": [judged("held_across_io")]}),
        (["leaked.collected"], {"collected": [Collected(SITE, 2)]}),
        (["held_across_io"], {"outside": [MostlyOutsideSql(SITE, 9, 9.0, 1.0, 1.0)]}),
        (["fork_shared"], {"holds": [judged(inherited=True)]}),
        (["fork_shared"], {"inherited": [InheritedUse(SITE, 7, 1.0)]}),
        (["unpooled"], {"stats": WORN}),
        ([], {"stats": WORN, "per_thread": True}),  # it is meant to
        (["exhausted"], {"stats": FULL, "holds": [judged()], "waits": [waiting("2")]}),
        (
            ["exhausted", "undersized"],
            {"stats": BUSY, "holds": [judged()], "waits": [waiting("2")]},
        ),
        (["nested"], {"nested": [NOTED]}),
        (["nested"], {"holds": [NESTED, NESTED]}),
        (
            ["exhausted", "pool_deadlock", "nested"],
            {"stats": FULL, "holds": [NESTED], "waits": [waiting()]},
        ),
        (  # one connection for all: no request waits for another
            ["exhausted"],
            {"stats": FULL, "holds": [NESTED], "waits": [waiting()], "shared": True},
        ),
    ],
)
def test_what_is_wrong_with_a_pool(kinds, evidence):
    seen = PoolEvidence(**{"stats": fakes.pool()} | evidence)
    assert [finding.kind for finding in pool_findings(seen)] == kinds


@pytest.mark.parametrize(
    "evidence",
    [
        {"by_others": True},
        {"called_again": True},  # the stack is that of a later call
        {"search": Search(None, hidden=False), "called_again": True},
    ],
)
def test_a_connection_that_was_handed_on_is_not_nested(evidence):
    holds = [judged(one_of_several=True, **evidence)] * 2
    assert pool_findings(PoolEvidence(fakes.pool(), holds=holds)) == []


def test_a_connection_that_may_be_hidden_counts_as_used():
    hidden = Search(None, hidden=True)
    holds = [judged(one_of_several=True, called_again=True, search=hidden)] * 2
    (finding,) = pool_findings(PoolEvidence(fakes.pool(), holds=holds))
    assert finding.kind == "nested"


@pytest.mark.parametrize(
    ("kind", "framework", "remedy"),
    [
        ("leaked.orphaned", None, "with block"),
        ("leaked.orphaned", "thread", "connections.close_all()"),
        ("leaked.orphaned", "persistent", "CONN_MAX_AGE to 0"),
        ("leaked.abandoned", "thread", "connections.close_all()"),
        ("held_across_io", "thread", "connection.close()"),
    ],
)
def test_the_remedy_for_a_connection_of_a_framework(kind, framework, remedy):
    holds = [judged(kind, framework=framework)]
    (finding,) = pool_findings(PoolEvidence(fakes.pool(), holds=holds))
    assert remedy in finding.remedy


def test_the_remedy_for_a_thread_that_left_its_connection_open():
    seen = PoolEvidence(fakes.pool(), collected=[Collected(SITE, 2)], per_thread=True)
    (finding,) = pool_findings(seen)
    assert "threads that have ended" in finding.text
    assert "connections.close_all()" in finding.remedy


def test_what_is_wrong_with_a_process():
    ago = (8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    made = PoolOrigin(SITE, "postgresql://db/d", 8, ("orders",), 1, ago)
    (finding,) = process_findings([made], [PoolEvidence(fakes.pool())])
    assert finding.kind == "pool_churn"


def test_what_the_servers_prove():
    row = fakes.server_row("idle in transaction", state_age_s=60.0)
    hold = fakes.hold(server=row, verdict="long", backend_pid=7)
    gone = fakes.hold("h2", backend_pid=8)
    app = fakes.process(hold, gone, pools=(fakes.pool(long_after_s=30.0),))
    (process,) = with_server_findings([ServerEvidence(app, missing=frozenset({"h2"}))])
    assert [each.kind for each in process.findings] == ["ghost", "idle_in_transaction"]


def test_a_kind_that_only_a_newer_agent_knows():
    """It is read as it is; a kind that is no text is damage."""
    assert "brand_new" not in get_args(FindingKind)
    text = wire.to_json(fakes.snapshot(fakes.process(findings=(fakes.finding(),))))
    newer = text.replace('"kind": "exhausted"', '"kind": "brand_new"')
    (process,) = wire.from_json(newer).processes
    assert process.findings[0].kind == "brand_new"
    assert json.loads(wire.to_json(wire.from_json(newer))) == json.loads(newer)
