"""A slot that nobody has, and pools that are exhausted by the pool's own count."""

from __future__ import annotations

import fakes

from poolwatch.diagnosis.evidence import FailedCall, MissingSlot
from poolwatch.diagnosis.pools import exhausted, lost_slot, undersized

SITE = fakes.frame("/app/jobs.py:31", "nightly")
OTHER = fakes.frame("/app/api.py:7", "fetch")


def failed(site=SITE, error="KeyboardInterrupt"):
    return FailedCall(site, error, 14.0)


def small(**changes):
    return fakes.pool(name="orders", size=2, max_overflow=0, **changes)


def test_lost_slot():
    (finding,) = lost_slot(small(), [MissingSlot(12.0, (failed(),))])
    assert finding.kind == "lost_slot"
    assert finding.text == (
        "pool 'orders' has lost 1 of its 2 slots: it has counted 1 connection as "
        "checked out for 12s that nobody holds, since a checkout at app/jobs.py:31 "
        "ended with KeyboardInterrupt"
    )
    assert finding.sites == (SITE,)
    assert "engine.dispose()" in finding.remedy


def test_nothing_failed_that_is_known():
    (finding,) = lost_slot(small(kind="ConnectionPool"), [MissingSlot(12.0, ())])
    assert finding.text.endswith("for 12s that nobody holds")
    assert finding.sites == ()
    assert finding.remedy.endswith("restart the process to get lost slots back.")


def test_one_of_several_may_have_lost_it():
    """No line is accused; the proof lists them."""
    calls = (failed(), failed(), failed(OTHER, "CancelledError"))
    (finding,) = lost_slot(small(), [MissingSlot(12.0, calls)])
    assert finding.sites == ()
    assert finding.text.endswith("for 12s that nobody holds")
    assert finding.proof.endswith(
        "what failed when the count rose: a checkout at app/jobs.py:31 ended with "
        "KeyboardInterrupt (2), a checkout at app/api.py:7 ended with CancelledError"
    )


def test_two_slots_of_two_calls():
    slots = [MissingSlot(12.0, (failed(),)), MissingSlot(3.0, (failed(OTHER),))]
    (finding,) = lost_slot(small(), slots)
    assert finding.text.startswith(
        "pool 'orders' has lost 2 of its 2 slots: it has counted 2 connections as "
    )
    assert finding.sites == (SITE, OTHER)


def test_a_return_that_was_not_completed():
    (finding,) = lost_slot(small(), [MissingSlot(1.0, (failed(error=None),))])
    assert finding.text.endswith(
        ", since the return of a connection checked out at app/jobs.py:31 was not "
        "completed"
    )
    assert finding.remedy.startswith("Look at what runs when a connection goes back")


def test_a_pool_without_a_limit_loses_no_slot():
    unlimited = fakes.pool(max_overflow=-1)
    assert lost_slot(unlimited, [MissingSlot(1.0, ())]) == []


def waits(number=1):
    return [fakes.wait(f"w{each}", waited_s=3.0) for each in range(number)]


def test_exhausted_by_lost_slots_alone():
    (finding,) = exhausted(small(lost_slots=2, checked_out=0), [], waits())
    assert finding.text == (
        "pool 'orders' is empty: 0 of 0 out, 1 waits (oldest 3.0s of 30s), 2 slots lost"
    )


def test_exhausted_by_what_was_out_before():
    (finding,) = exhausted(small(unrecorded=2, checked_out=0), [], waits())
    assert finding.text.startswith("pool 'orders' is empty: 2 of 2 out")
    assert finding.proof.startswith(
        "held by 2 checkouts from before the pool was instr"
    )


def test_exhausted_by_a_pool_over_it():
    holds = [fakes.hold("h1", pool="outer", site=SITE)]
    (finding,) = exhausted(small(), holds, waits(), lent_idle=1)
    assert finding.proof == (
        "held by app/jobs.py:31 (1) and a pool over this one, idle (1)"
    )


def test_holds_without_a_slot_do_not_exhaust_the_pool():
    """Detached ones, and those of the pool before ``dispose()``."""
    holds = [fakes.hold("h1"), fakes.hold("h2")]
    assert exhausted(small(slotless=1), holds, waits()) == []
    assert exhausted(small(), holds, waits())


def test_holds_without_a_slot_do_not_make_the_pool_too_small():
    """A slot is free: the wait is one for a new connection, say."""
    holds = [fakes.hold("h1", held_s=0.1), fakes.hold("h2", held_s=0.1)]
    usual = fakes.times(0.2)
    assert undersized(small(hold_s=usual), holds, waits(3))
    assert undersized(small(hold_s=usual, slotless=1), holds, waits(3)) == []


def test_a_pool_with_lost_slots_was_large_enough():
    holds = [fakes.hold("h1", held_s=0.1)]
    busy = small(hold_s=fakes.times(0.2), lost_slots=1)
    assert undersized(busy, holds, waits(3)) == []
