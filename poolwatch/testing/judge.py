"""Determines the leaks of a test or fixture after its end.

Other threads get a short time to return their connections. If any are left, the garbage
collector runs, to distinguish held connections from dropped ones. Leaks that the
configuration ignores, or in pools that are not judged, do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from poolwatch.runtime.gc_pause import collect
from poolwatch.testing.open_holds import is_open, steps, wait_for_collections
from poolwatch.testing.owners import Owner, any_in_other_thread

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.model import Frame
    from poolwatch.testing.leak import Leak

    Suspects = list[tuple[Checkout, PoolLedger]]

_THREAD_GRACE_S = 0.2
"""Default grace for connections of other threads, in seconds."""


class Judge:
    """Determines leaks with the settings of one run."""

    def __init__(
        self, *, grace: float | None, ignore: Sequence[str], root: Path
    ) -> None:
        self._grace = grace
        self._ignore = [glob for line in ignore if (glob := line.split("#")[0].strip())]
        self._root = root

    def leaks(self, owner: Owner, postpone: Callable[[Owner], None]) -> list[Leak]:
        """Return the leaks of an owner; each leak is returned only once.

        ``postpone`` removes the holds that a wider fixture may still close.
        """
        wait_for_collections(owner.open_holds)
        for hold in list(owner.open_holds):
            if not is_open(hold) or hold.is_kept_by_framework():
                owner.open_holds.pop(hold, None)
        if owner.open_holds:
            postpone(owner)
        suspects = list(owner.open_holds.items())
        if suspects:
            self._wait_for_returns(owner, suspects)
        still_open = [
            (pool, hold) for hold, pool in suspects if owner.open_holds.pop(hold, None)
        ]
        held = [pair for pair in still_open if self._counts(owner, pair[0].id)]
        collected, owner.dropped = owner.dropped, []
        dropped = [each for each in collected if self._counts(owner, each[0].id)]
        owner.judged = True
        if not held and not dropped:
            return []
        from poolwatch.testing import evidence

        leaks = [evidence.from_collected_hold(*each) for each in dropped]
        leaks += evidence.from_open_holds(held, time.monotonic())
        return [leak for leak in leaks if not self._ignored(leak)]

    def _wait_for_returns(self, owner: Owner, suspects: Suspects) -> None:
        """Wait for the return of the suspects, but not of later ones."""
        grace = self._grace
        if grace is None:
            in_other_threads = any_in_other_thread(hold for hold, _ in suspects)
            grace = _THREAD_GRACE_S if in_other_threads else 0.0
        for pause in steps(grace):
            if not any(hold in owner.open_holds for hold, _ in suspects):
                return
            time.sleep(pause)
        collect()
        wait_for_collections(owner.open_holds)

    @staticmethod
    def _counts(owner: Owner, pool: str) -> bool:
        return owner.pools is None or pool in owner.pools

    def _ignored(self, leak: Leak) -> bool:
        names = [name for frame in leak.stack for name in self._names_of(frame)]
        return any(fnmatchcase(name, glob) for glob in self._ignore for name in names)

    def _names_of(self, frame: Frame) -> tuple[str, ...]:
        """The names of a frame that a glob may match: path, function, or both."""
        path = Path(frame.file)
        if path.is_relative_to(self._root):
            path = path.relative_to(self._root)
        short, function = path.as_posix(), frame.function
        dotted = ".".join(path.with_suffix("").parts)
        return (
            short,
            frame.file,
            function,
            f"{short}::{function}",
            dotted,
            f"{dotted}.{function}",
        )
