"""Several are asked at once, and nobody is waited for longer than agreed."""

from __future__ import annotations

import threading
import time

from helpers import LONG_S, until

from poolwatch.client.calls import Calls


def test_calls_run_at_the_same_time():
    """Three calls that wait for each other all return."""
    together = threading.Barrier(3, timeout=LONG_S)
    calls = Calls()
    outcomes = calls.run(dict.fromkeys("abc", together.wait), LONG_S)
    assert sorted(outcome.value for outcome in outcomes.values()) == [0, 1, 2]
    assert all(outcome.began <= outcome.ended for outcome in outcomes.values())


def test_an_error_is_an_outcome():
    outcome = Calls().run({"a": lambda: 1 // 0}, LONG_S)["a"]
    assert isinstance(outcome.error, ZeroDivisionError)
    assert outcome.value is None


def test_a_late_call_is_neither_repeated_nor_waited_for():
    """Its late result is not the result of a later run; then the call is made again."""
    release, made = threading.Event(), []

    def slow():
        made.append(1)
        release.wait(LONG_S)
        return len(made)

    calls = Calls()
    assert calls.run({"a": slow}, 0.05)["a"].ended is None
    began = time.monotonic()
    outcomes = calls.run({"a": slow, "b": lambda: "quick"}, LONG_S)
    assert time.monotonic() - began < LONG_S / 2
    assert (outcomes["a"].ended, outcomes["b"].value) == (None, "quick")
    assert len(made) == 1
    release.set()
    outcomes = until(lambda: (now := calls.run({"a": slow}, 1.0))["a"].ended and now)
    assert outcomes["a"].value == 2


def test_late_returns_each_outcome_once():
    """With its result or error; a later run never returns it."""
    release = threading.Event()
    calls = Calls()
    assert calls.run({"a": release.wait}, 0.05)["a"].ended is None
    assert calls.late() == {}
    release.set()
    late = until(calls.late)
    assert late["a"].value is True
    assert calls.late() == {}


def test_limits_are_shorter_for_some_calls():
    release = threading.Event()
    calls = Calls()
    began = time.monotonic()
    outcomes = calls.run({"a": release.wait, "b": lambda: 1}, 5.0, limits={"a": 0.05})
    assert time.monotonic() - began < 2.5
    assert (outcomes["a"].ended, outcomes["b"].value) == (None, 1)
    release.set()
