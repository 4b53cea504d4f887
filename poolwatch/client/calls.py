"""Concurrent calls with a deadline for each.

No executor is used, because the program would wait for its slowest call at exit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

BRIEF_S = 0.3
"""Seconds to wait for a call whose last answer was late."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a call, with its times on the ``time.monotonic`` clock."""

    value: Any
    error: Exception | None
    began: float
    ended: float | None
    """None while the call is still running."""


@dataclass(slots=True)
class _Call:
    began: float
    done: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None


class Calls:
    """Runs calls by key, each in its own daemon thread, at most one per key."""

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
        """Return the outcome of every job, after ``patience_s`` at the latest.

        ``limits``: shorter limits for some keys. A call that is still running from an
        earlier run is neither repeated nor waited for. Its result will be too old for
        a later run, so late() returns it.
        """
        self._collect()
        fresh = {
            key: self._start(jobs[key]) for key in jobs if key not in self._running
        }
        began = time.monotonic()
        for key, call in fresh.items():
            patience = min(patience_s, limits.get(key, patience_s))
            call.done.wait(max(0.0, began + patience - time.monotonic()))
        self._running |= {k: c for k, c in fresh.items() if c.outcome is None}
        return {
            key: fresh[key].outcome or _pending(fresh[key])
            if key in fresh
            else _pending(self._running[key])
            for key in jobs
        }

    def late(self) -> dict[Hashable, Outcome]:
        """Return the outcomes of calls that outlasted their run, each once."""
        self._collect()
        late, self._late = self._late, {}
        return late

    def is_running(self, key: Hashable) -> bool:
        """Whether a call has outlasted its run and is still running."""
        self._collect()
        return key in self._running

    def _collect(self) -> None:
        done = {k: c.outcome for k, c in self._running.items() if c.outcome is not None}
        self._late |= done
        self._running = {k: c for k, c in self._running.items() if k not in done}

    @staticmethod
    def _start(job: Callable[[], Any]) -> _Call:
        call = _Call(time.monotonic())

        def work() -> None:
            value, error = None, None
            try:
                value = job()
            except Exception as raised:  # noqa: BLE001 - the caller judges it
                error = raised
            call.outcome = Outcome(value, error, call.began, time.monotonic())
            call.done.set()

        threading.Thread(target=work, name="poolwatch-call", daemon=True).start()
        return call


def _pending(call: _Call) -> Outcome:
    return Outcome(None, None, call.began, None)
