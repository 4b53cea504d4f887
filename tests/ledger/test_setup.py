"""When a pool was used: not before the look that saw fewer checkouts."""

from __future__ import annotations

from poolwatch.ledger.setup import Setup


def used(setup, now):
    return setup.record(0.0, now).used_s


def test_a_use_is_after_the_previous_look():
    setup = Setup()
    setup.restart(100.0)
    assert used(setup, 101.0) is None
    setup.note(1, 101.0)
    assert used(setup, 101.0) == 1.0  # at most
    setup.note(1, 105.0)
    setup.note(1, 110.0)
    assert used(setup, 110.0) == 10.0
    setup.note(2, 111.0)
    assert used(setup, 111.0) == 1.0


def test_a_fork_starts_over():
    setup = Setup()
    setup.note(3, 1.0)
    setup.restart(2.0)
    assert used(setup, 3.0) is None
