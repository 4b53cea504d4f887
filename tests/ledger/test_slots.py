"""A slot is lost if two comparisons, some time apart, agree that it is."""

from __future__ import annotations

import pytest

from poolwatch.ledger.checkout import Gauges
from poolwatch.ledger.slots import Failed, Slots


class Comparisons:
    """Slots, and comparisons a second apart."""

    def __init__(self, *unheld, **gauges):
        self.slots, self.now = Slots(), 1000.0
        self.look(*unheld, **gauges)

    def look(self, *unheld, after=1.0, **gauges):
        for each in unheld:
            pair = each if isinstance(each, tuple) or each is None else (each, each)
            self.now += after
            self.slots.compare(self.now, Gauges(unheld=pair, **gauges))
        return self.slots.lost

    def fail(self, error="KeyboardInterrupt", at="app.py:1"):
        self.slots.failed.append(Failed(self.now + 0.5, at, error))


def test_two_comparisons_have_to_agree():
    seen = Comparisons(0)
    assert seen.look(1) == 0
    assert seen.look(1) == 1


def test_a_torn_reading_is_no_proof():
    seen = Comparisons(0)
    assert [seen.look(each) for each in (2, 0, 1, 0, 3, 0)] == [0] * 6


def test_two_readings_of_one_moment_are_one():
    seen = Comparisons(0)
    seen.look(1)
    assert seen.look(1, 1, 1, after=0.05) == 0
    assert seen.look(1) == 1


def test_a_lost_slot_stays_lost_under_load():
    """The fewest are fewer while requests and returns are in progress."""
    seen = Comparisons(0)
    seen.look(1, 1)
    assert seen.look((0, 4), (0, 3), (-2, 1)) == 1


def test_a_slot_that_came_back_is_not_lost():
    """A late garbage collection returns it, or the pool is made anew."""
    seen = Comparisons(0)
    seen.look(2, 2)
    assert seen.look(1) == 2
    assert seen.look(1) == 1
    assert seen.look(0, 0) == 0


def test_what_was_out_before_is_not_lost():
    seen = Comparisons(3)
    assert seen.look(3, 3, 3) == 0
    assert seen.slots.before == 3


def test_what_was_out_before_comes_back():
    """And then one more is missing."""
    seen = Comparisons(3)
    seen.look(1, 1)
    assert seen.slots.before == 1
    assert seen.look(2, 2) == 1


@pytest.mark.parametrize("busy", [(0, 3), (-1, 4), (2, 3)])
def test_what_was_out_before_does_not_shrink_by_what_is_on_its_way(busy):
    seen = Comparisons(3)
    seen.look(busy, busy, 3, 3)
    assert (seen.slots.before, seen.slots.lost) == (3, 0)


def test_what_is_out_without_a_hold():
    """At once, when one of those from before has come back."""
    seen = Comparisons(3)
    assert seen.slots.unrecorded(Gauges(unheld=(2, 2))) == 2
    assert seen.slots.unrecorded(Gauges(unheld=(3, 5), unseen=1)) == 4
    assert seen.slots.unrecorded(Gauges()) == 3


def test_a_pool_that_knows_what_was_out_before():
    seen = Comparisons(0, before=2)
    assert seen.look(1, 1, before=2) == 1
    assert seen.slots.before == 2


def test_dropped_connections_are_counted_once():
    """The drop is proof by itself; the pool's count shows it, too."""
    seen = Comparisons(0)
    seen.slots.drop()
    assert seen.slots.lost == 1
    assert seen.look(1, 1, 1) == 1
    assert seen.look(2, 2) == 2
    assert len(seen.slots.missing) == 1


def test_a_pool_without_a_count():
    seen = Comparisons(None)
    assert seen.look(None, None) == 0


def test_what_failed_when_it_was_lost():
    """Neither what failed long before, nor what failed since."""
    seen = Comparisons(0)
    seen.fail("TooEarly")
    seen.look(0)
    seen.fail("CancelledError")
    seen.look(1)
    seen.fail("TooLate")
    seen.look(1)
    (lost,) = seen.slots.missing
    assert [each.error for each in lost.failed] == ["CancelledError"]
    assert lost.since == 1003.0


def test_what_failed_is_known_if_requests_hid_the_loss_at_first():
    seen = Comparisons(0)
    seen.fail("CancelledError")
    seen.look((0, 2), (1, 1), (1, 1))
    (lost,) = seen.slots.missing
    assert [each.error for each in lost.failed] == ["CancelledError"]


def test_a_fork_starts_over():
    seen = Comparisons(0)
    seen.look(1, 1)
    seen.slots.forget()
    assert seen.look(2, 2, 2) == 0
    assert seen.slots.before == 2
