"""What an owner has leaked, told when it is over.

The order: its fixtures are done; what it has declared or what is ignored does not
count; other threads get a moment; and only if something is left the collector runs, to
tell what is held from what was dropped.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from poolwatch.leaks import noticing
from poolwatch.leaks.record import Leak
from poolwatch.model import Frame
from poolwatch.testing.owners import Owner, by_other_threads, wait_for

_FOR_THREADS_S = 0.2
"""What other threads get if no grace is set."""


class Judge:
    """Judges with the settings of one run."""

    def __init__(
        self, *, grace: float | None, ignore: Sequence[str], root: Path
    ) -> None:
        self._grace = grace
        self._ignore = [glob for line in ignore if (glob := line.split("#")[0].strip())]
        self._root = root

    def leaks(self, owner: Owner) -> list[Leak]:
        """What it has leaked and was not told yet; afterwards its books are empty."""
        if owner.out:
            self._settle(owner)
        held = [pair for pair in owner.out.values() if self._counts(owner, pair[0].id)]
        dropped = [leak for book, leak in owner.dropped if self._counts(owner, book.id)]
        owner.out.clear()
        owner.dropped.clear()
        owner.over = True
        if not held and not dropped:
            return []
        leaks = [*dropped, *noticing.open_ones(held, time.monotonic())]
        return [leak for leak in leaks if not self._ignored(leak)]

    def _settle(self, owner: Owner) -> None:
        grace = self._grace
        if grace is None:
            others = by_other_threads([hold for _, hold in owner.out.values()])
            grace = _FOR_THREADS_S if others else 0.0
        wait_for(owner, grace)
        if owner.out:
            gc.collect()

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
