"""Two threads that come at once get the same value."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from poolwatch.runtime.made_once import made_once


class Owner:
    def __init__(self, threads):
        self.both_are_in = threading.Barrier(threads)

    @made_once
    def value(self):
        """Made on first use."""
        self.both_are_in.wait(60)
        return object()


def test_one_value_for_all_threads():
    owner = Owner(2)
    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(lambda _: owner.value, range(2))
    assert first is second is owner.value
    assert Owner.value.__doc__ == "Made on first use."
