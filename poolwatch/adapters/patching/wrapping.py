"""Methods of a pool stand under wrappers of ours, and the way back.

A wrapper hangs on the instance, so that no other pool pays for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref


class Wrapped:
    """A pool whose methods stand under wrappers of ours.

    Each wrapper has the name of the method in whose place it stands.
    """

    def __init__(self, pool: Any, wrappers: list[Any]) -> None:
        self.pool = ref(pool)
        self.end: Any = None
        """What runs when the pool is gone, if anything: a ``weakref.finalize``."""
        self._ours: list[tuple[str, Callable[[], Any]]] = [
            (each.__name__, ref(each)) for each in wrappers
        ]
        for each in wrappers:
            around = pool.__dict__.get(each.__name__)
            if around is not None:
                each.around = around

    def wrap(self, wrappers: list[Any]) -> None:
        """Put them in their places."""
        pool = self.pool()
        for each in wrappers:
            setattr(pool, each.__name__, each)

    def unwrap(self) -> None:
        """Take ours off where it is the outermost; below another's it stays."""
        if self.end is not None:
            self.end.detach()
        pool = self.pool()
        for name, reference in self._ours:
            ours: Any = reference()
            if pool is None or pool.__dict__.get(name) is not ours or not ours:
                continue
            around = getattr(ours, "around", None)
            if around is None:
                delattr(pool, name)
            else:  # somebody had wrapped it before us
                setattr(pool, name, around)


def unbound(pool: Any, name: str) -> Callable[..., Any]:
    """The method as a function of the pool, so that no wrapper refers to its pool."""
    theirs: Any = pool.__dict__.get(name)
    if theirs is not None:  # somebody has wrapped it before us
        return lambda _, *args, **kwargs: theirs(*args, **kwargs)
    method: Callable[..., Any] = getattr(type(pool), name)
    return method
