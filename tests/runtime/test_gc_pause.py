"""The garbage collector is paused for a call, whatever the application does with it."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest

from poolwatch.runtime.gc_pause import collect, undisturbed


class Cycle:
    collected = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        Cycle.collected += 1


def collections_during_many_allocations() -> int:
    Cycle.collected = 0
    keep = [Cycle() for _ in range(20)]
    del keep
    _ = [[] for _ in range(200_000)]
    return Cycle.collected


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.enable()


def test_nothing_is_collected_during_the_call() -> None:
    assert collections_during_many_allocations() == 20
    assert undisturbed(collections_during_many_allocations) == 0
    assert collections_during_many_allocations() >= 20


def test_a_collector_that_is_switched_off_meanwhile_stays_off() -> None:
    undisturbed(gc.disable)
    assert not gc.isenabled()


def test_a_threshold_that_is_set_meanwhile_stays() -> None:
    undisturbed(lambda: gc.set_threshold(5000, 7, 9))
    assert gc.get_threshold()[0] == 5000


def test_the_last_of_several_calls_ends_the_pause() -> None:
    before = gc.get_threshold()
    assert undisturbed(lambda: undisturbed(gc.get_threshold))[0] == 0
    assert undisturbed(lambda: (undisturbed(int), gc.get_threshold())[1])[0] == 0
    assert gc.get_threshold() == before


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_during_the_call_ends_it_in_the_child() -> None:
    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if gc.get_threshold()[0] else 1)
        return os.waitpid(pid, 0)[1]

    assert undisturbed(fork) == 0


def test_a_collection_of_another_thread_is_waited_for() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Cycle):
        def __del__(self) -> None:
            begun.set()
            go_on.wait(30)

    def collect_slowly() -> None:
        Slow()
        gc.collect()

    gc.disable()
    other = threading.Thread(target=collect_slowly)
    other.start()
    assert begun.wait(30)
    Cycle.collected = 0
    Cycle()
    gc.collect()
    assert Cycle.collected == 0  # it has returned at once
    threading.Timer(0.05, go_on.set).start()
    collect()
    assert Cycle.collected == 1
    other.join(30)
