"""A table of weak references that other threads may change at any time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar
from weakref import WeakValueDictionary

K = TypeVar("K")
V = TypeVar("V")


class WeakValues(WeakValueDictionary[K, V]):
    """Iterates over a copy: the standard one raises RuntimeError if another thread adds
    or removes an entry meanwhile, also in ``list(table.values())``.
    """

    def items(self) -> Iterator[tuple[K, V]]:  # type: ignore[override]
        """The entries whose values are alive."""
        references: Any = list(self.data.items())  # type: ignore[attr-defined]
        pairs = [(key, reference()) for key, reference in references]
        return iter([(key, value) for key, value in pairs if value is not None])

    def keys(self) -> Iterator[K]:  # type: ignore[override]
        """The keys whose values are alive."""
        return iter([key for key, _ in self.items()])

    def values(self) -> Iterator[V]:  # type: ignore[override]
        """The values that are alive."""
        return iter([value for _, value in self.items()])

    __iter__ = keys
