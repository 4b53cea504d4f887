"""What an owner has leaked, told when it is over.

The order: its fixtures are done; what it has declared or what is ignored does not
count; other threads get a moment; and only if something is left the collector runs, to
tell what is held from what was dropped.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from poolwatch.testing.owners import Owner, by_other_threads

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.model import Frame
    from poolwatch.testing.leak import Leak

    Suspects = list[tuple[Checkout, PoolLedger]]

_FOR_THREADS_S = 0.2
"""What other threads get if no grace is set."""
_STEP_S = 0.005


class Judge:
    """Judges with the settings of one run."""

    def __init__(
        self, *, grace: float | None, ignore: Sequence[str], root: Path
    ) -> None:
        self._grace = grace
        self._ignore = [glob for line in ignore if (glob := line.split("#")[0].strip())]
        self._root = root

    def leaks(self, owner: Owner, entrust: Callable[[Owner], None]) -> list[Leak]:
        """What it has leaked and was not told yet; it is told once.

        ``entrust`` takes off what others will answer for.
        """
        for hold in list(owner.out):
            if not _still_out(hold):
                owner.out.pop(hold, None)
        if owner.out:
            entrust(owner)
        suspects = list(owner.out.items())
        if suspects:
            self._settle(owner, suspects)
        out = [(book, hold) for hold, book in suspects if owner.out.pop(hold, None)]
        held = [pair for pair in out if self._counts(owner, pair[0].id)]
        lost, owner.dropped = owner.dropped, []
        dropped = [each for each in lost if self._counts(owner, each[0].id)]
        owner.over = True
        if not held and not dropped:
            return []
        from poolwatch.testing import evidence

        leaks = [evidence.collected(*each) for each in dropped]
        leaks += evidence.open_ones(held, time.monotonic())
        return [leak for leak in leaks if not self._ignored(leak)]

    def _settle(self, owner: Owner, suspects: Suspects) -> None:
        """Give these time; what a thread takes meanwhile is not suspect."""
        grace = self._grace
        if grace is None:
            others = by_other_threads(hold for hold, _ in suspects)
            grace = _FOR_THREADS_S if others else 0.0
        until = time.monotonic() + grace
        while any(hold in owner.out for hold, _ in suspects):
            if time.monotonic() >= until:
                gc.collect()
                return
            time.sleep(_STEP_S)

    @staticmethod
    def _counts(owner: Owner, pool: str) -> bool:
        return owner.pools is None or pool in owner.pools

    def _ignored(self, leak: Leak) -> bool:
        names = [name for frame in leak.stack for name in self._names(frame)]
        return any(fnmatchcase(name, glob) for glob in self._ignore for name in names)

    def _names(self, frame: Frame) -> tuple[str, ...]:
        """How a frame may be meant: by path, by function, or by both."""
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


def _still_out(hold: Checkout) -> bool:
    """Ask the proxy itself: nobody tells us what comes back to a pool not watched now.

    A test may have called ``poolwatch.uninstrument()``.
    """
    proxy = hold.proxy()
    return proxy is not None and getattr(proxy, "dbapi_connection", proxy) is not None
