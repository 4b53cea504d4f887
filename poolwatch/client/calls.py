"""Ask several at once, and wait for none of them longer than agreed.

An executor will not do: the program could not end before its slowest call does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

BRIEF_S = 0.3
"""A good answer takes less: how long one is waited for that was silent so far."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call went, and when: seconds of ``time.monotonic``."""

    value: Any
    error: Exception | None
    began: float
    ended: float | None
    """None while it has not come back."""


@dataclass(slots=True)
class _Call:
    began: float
    done: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None


class Calls:
    """Calls by key, each in a daemon thread of its own, at most one per key."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Call] = {}
        self._late: dict[Hashable, Outcome] = {}

    def run(
        self,
        jobs: Mapping[Hashable, Callable[[], Any]],
        patience_s: float,
        *,
        limits: Mapping[Hashable, float] = MappingProxyType({}),
    ) -> dict[Hashable, Outcome]:
        """Return the outcome of every job, waiting ``patience_s`` for all together.

        Those in ``limits`` are waited for no longer than that. A call that has not come
        back from an earlier run is neither repeated nor waited for; when it does come
        back its result is too old to be shown as the present.
        """
        self._come_back()
        fresh = {
            key: self._start(jobs[key]) for key in jobs if key not in self._running
        }
        began = time.monotonic()
        for key, call in fresh.items():
            patience = min(patience_s, limits.get(key, patience_s))
            call.done.wait(max(0.0, began + patience - time.monotonic()))
        self._running |= {k: c for k, c in fresh.items() if c.outcome is None}
        return {
            key: fresh[key].outcome or _late(fresh[key])
            if key in fresh
            else _late(self._running[key])
            for key in jobs
        }

    def late(self) -> dict[Hashable, Outcome]:
        """Return how calls went that came back after their run; each of them once."""
        self._come_back()
        late, self._late = self._late, {}
        return late

    def _come_back(self) -> None:
        back = {k: c.outcome for k, c in self._running.items() if c.outcome is not None}
        self._late |= back
        self._running = {k: c for k, c in self._running.items() if k not in back}

    @staticmethod
    def _start(job: Callable[[], Any]) -> _Call:
        call = _Call(time.monotonic())

        def work() -> None:
            value, error = None, None
            try:
                value = job()
            except Exception as raised:  # noqa: BLE001 - the caller's to judge
                error = raised
            call.outcome = Outcome(value, error, call.began, time.monotonic())
            call.done.set()

        threading.Thread(target=work, name="poolwatch-call", daemon=True).start()
        return call


def _late(call: _Call) -> Outcome:
    return Outcome(None, None, call.began, None)
