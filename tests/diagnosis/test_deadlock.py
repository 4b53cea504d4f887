"""Deadlocks of a pool, from the evidence alone: who holds, who waits, for what."""

from __future__ import annotations

from dataclasses import replace

import fakes
import pytest

from poolwatch.diagnosis.deadlock import deadlocked
from poolwatch.diagnosis.evidence import (
    Blocked,
    HoldEvidence,
    JudgedHold,
    OpenWait,
    PoolEvidence,
)
from poolwatch.diagnosis.findings import pool_findings

TAKEN, WANTED, OTHER = (
    fakes.frame(f"/srv/app/{name}.py:{line}")
    for name, line in (("taken", 1), ("wanted", 2), ("other", 3))
)
AT = fakes.frame("/srv/app/waits.py:9")
T1, T2, LOOP, LIMITER, LOCK, WORKERS = "T1", "T2", "loop", "limiter", "lock", "workers"
POOL = ("pool", "orders")


def hold(number=1, *users, verdict="ok", pool="orders", **evidence):
    held = fakes.hold(f"h{number}", site=TAKEN, verdict=verdict, pool=pool)
    seen = HoldEvidence(held_s=2.0, long_after=30.0, users=users or None, **evidence)
    return JudgedHold(held, None, seen)


def wait(owner, pool="orders", site=WANTED):
    return OpenWait(fakes.wait(f"w{owner}", site=site, pool=pool), owner)


def pool(*holds, waits=(), size=None, name="orders", blocked=None, **changes):
    stats = fakes.pool(name, size=size or len(holds), max_overflow=0)
    return PoolEvidence(
        stats, holds=holds, waits=waits, blocked=blocked or {}, **changes
    )


def thread(*groups, name="T", at=AT):
    return Blocked("thread", groups, name, at)


def task(*groups, at=AT):
    return Blocked("task", groups, "Task-1", at)


@pytest.mark.parametrize(
    ("said", "remedy", "blocked"),
    [
        (
            "stopped by a synchronous wait for a connection at app/wanted.py:2",
            "async engine",
            {
                "k": task((LOOP,)),
                LOOP: Blocked("event loop", ((T1,),), "MainThread"),
                T1: thread((POOL,), at=WANTED),
            },
        ),
        (
            "a thread of a limiter of 1 thread, and that one waits for a connection",
            "before the response is validated",
            {
                "k": task((LIMITER,), at=fakes.frame("/lib/fastapi/routing.py:347")),
                LIMITER: Blocked("limiter", (("k2",),), size=1),
                "k2": task((T1,)),
                T1: thread((POOL,)),
            },
        ),
        (
            "a worker of an executor of 1 thread, and that one waits for a connection",
            "within one work item",
            {
                "k": thread((WORKERS,)),
                WORKERS: Blocked("executor", ((T1,),), size=1),
                T1: thread((POOL,)),
            },
        ),
        (
            "an executor of 2 threads, and none of the 2 can go on",
            "waits for itself",
            {
                "k": thread((WORKERS,)),
                WORKERS: Blocked("executor", (("k", "k3"),), size=2),
                "k3": thread((WORKERS,)),
                T1: thread((POOL,)),
            },
        ),
        (
            "for a lock, and thread T1 has the lock and waits at app/waits.py:9, too",
            "always in the same order",
            {
                "k": thread((LOCK,)),
                LOCK: Blocked("lock", ((T1,),), "thread T1"),
                T1: thread((POOL,)),
            },
        ),
        (
            "waits at app/waits.py:9 for other threads or tasks",
            "Pass the connection",
            {"k": thread((T1,)), T1: thread((POOL,))},
        ),
    ],
)
def test_what_closes_the_circle(said, remedy, blocked):
    evidence = pool(hold(1, "k"), waits=[wait(T1)], blocked=blocked)
    (found,) = deadlocked(evidence)
    assert said in found.text
    assert remedy in found.remedy
    assert (found.kind, found.severity, found.pool) == (
        "pool_deadlock",
        "critical",
        "orders",
    )
    assert (found.holds, found.sites[0]) == (("h1",), TAKEN)
    assert "undersized" not in [each.kind for each in pool_findings(evidence)]


@pytest.mark.parametrize(
    "evidence",
    [
        pool(hold(1, "k"), waits=[wait(T1)]),  # nothing is known of k
        pool(hold(1, "k"), waits=[wait(T1)], blocked={"k": thread(("free",))}),
        pool(hold(1, "k", "free"), waits=[wait(T1)], blocked={"k": thread((T1,))}),
        pool(hold(1, "k"), hold(2), waits=[wait(T1)], blocked={"k": thread((T1,))}),
        pool(hold(1, "k"), waits=[], blocked={"k": thread((POOL,))}),
        pool(hold(1, "k"), waits=[wait(T1)], size=2, blocked={"k": thread((T1,))}),
        pool(hold(1, verdict="leaked"), waits=[wait(T1)]),  # a leak, not a deadlock
        pool(
            hold(1, "k", detached=True),
            hold(2, "k"),
            waits=[wait(T1)],
            blocked={"k": thread((POOL,))},
        ),
        pool(
            hold(1, "k"),
            waits=[wait(T1)],
            blocked={"k": thread((POOL,))},
            shared=True,
        ),
    ],
)
def test_somebody_can_move(evidence):
    assert deadlocked(evidence) == []


def test_holders_that_wait_for_their_own_pool():
    nested = [hold(n, one_of_several=True, owner=f"o{n}") for n in (1, 2)]
    nested = [
        each._replace(hold=fakes.hold(each.hold.id, site=TAKEN, now=(TAKEN,)))
        for each in nested
    ]
    (found,) = deadlocked(pool(*nested, waits=[wait("o1"), wait("o2")]))
    assert "each of its 2 connections is held by a thread or task" in found.text
    assert "A pool of 3 connections" in found.remedy
    assert found.waits == ("wo1", "wo2")


def test_a_leak_beside_it_does_not_move_either():
    leak = hold(2, verdict="leaked")
    blocked = {"k": thread((T1,)), T1: thread((POOL,))}
    (found,) = deadlocked(pool(hold(1, "k"), leak, waits=[wait(T1)], blocked=blocked))
    assert found.holds == ("h1",)
    assert "1 more leaked" in found.proof


def test_two_pools_crosswise():
    """Each is deadlocked, and tells of the other; all four lines are named."""
    blocked = {"a": thread((("pool", "b"),)), "b": thread((("pool", "a"),))}
    first = pool(
        hold(1, "a", pool="a"),
        waits=[wait("b", "a")],
        name="a",
        blocked=blocked,
    )
    second = pool(
        hold(2, "b", pool="b"),
        waits=[wait("a", "b", OTHER)],
        name="b",
        blocked=blocked,
    )
    for one, other in ((first, second), (second, first)):
        (found,) = deadlocked(one, [first, second])
        assert f"waits for pool '{other.stats.name}'" in found.text
        assert set(found.sites) == {TAKEN, WANTED, OTHER}
    free = pool(
        hold(2, "free", pool="b"), waits=second.waits, name="b", blocked=blocked
    )
    assert deadlocked(first, [first, free]) == []


def test_who_waits_under_another_name():
    """The holder of a wait is known by its thread."""
    blocked = {
        "k": thread((T1,)),
        T1: thread((POOL,)),
        "holder": thread((T1,), name="", at=None),
    }
    (found,) = deadlocked(pool(hold(1, "k"), waits=[wait("holder")], blocked=blocked))
    assert found.waits == ("wholder",)


def test_a_hold_from_before_dispose_leaves_a_slot():
    """It is a hold of the former pool: the new one is not full."""
    evidence = pool(
        hold(1, "k"), hold(2, "k"), waits=[wait(T1)], blocked={"k": thread((T1,))}
    )
    assert deadlocked(evidence)
    stats = replace(evidence.stats, slotless=1)
    assert deadlocked(replace(evidence, stats=stats)) == []


def test_jobs_that_wait_for_something_else_are_not_undersized():
    """More connections would only be held in the same way."""
    stats = fakes.pool(size=1, max_overflow=0, hold_s=fakes.times(1.0))

    def kinds(**changes):
        held = fakes.hold(held_s=1.0, **changes)
        judged = JudgedHold(held, None, HoldEvidence(held_s=1.0, long_after=30.0))
        seen = PoolEvidence(stats, holds=[judged], waits=[wait("2")])
        return [each.kind for each in pool_findings(seen)]

    assert kinds() == ["exhausted", "undersized"]
    assert kinds(in_sql_s=0.9) == ["exhausted", "undersized"]
    assert kinds(in_sql_s=0.1) == ["exhausted"]
