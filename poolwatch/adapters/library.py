"""What the registry asks of the adapter of one library.

By itself, because it is only for type checkers: a Protocol takes a while to make.
"""

from __future__ import annotations

from typing import Any, Protocol

from poolwatch.ledger.pool import PoolLedger
from poolwatch.ledger.settings import Settings


class Library(Protocol):
    """The instrumented pools of one library; see LibraryPools."""

    def accepts(self, target: Any) -> bool:
        """Whether ``target`` is a pool of this library."""
        ...

    def watch(self, target: Any, settings: Settings) -> str:
        """Instrument a pool, or change its settings; returns the id of the pool."""
        ...

    def id_of(self, target: Any) -> str | None:
        """The id of an instrumented pool; None if it is not."""
        ...

    def forget(self, target: Any) -> None:
        """Take the hooks off one pool, if it has any."""
        ...

    def watch_every(self, settings: Settings, *, existing: bool) -> None:
        """Instrument all pools to come, and those there are if there may be any."""
        ...

    def forget_every(self) -> None:
        """Take off all hooks."""
        ...

    def forget_parent(self) -> None:
        """In a forked child."""
        ...


class Hooks(Protocol):
    """What is attached to one pool."""

    book: PoolLedger

    @property
    def pool(self) -> Any:
        """The pool that is hooked; None once it is gone. ``book.gauges`` must be a
        bound method of these hooks: that is how they are found again.
        """
        ...

    def has(self, pool: Any) -> bool:
        """Whether these hooks are on ``pool``."""
        ...

    def remove(self) -> None:
        """Take everything off again. What is in flight passes through."""
        ...
