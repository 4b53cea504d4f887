"""Methods of a class stand under ours, for the pools that are hooked.

A wrapper on the instance would tie the pool into a cycle: it must keep its pool alive,
as a bound method does. A pool that is freed when its last reference goes, and closes
its connections with that, would wait for the garbage collector. Ours are found by the
class, as all methods are, and look up the pool that they are called for; the other
pools of the class pay for one look into a dict.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

Method = Callable[..., Any]


class ClassMethods:
    """Methods of the classes of one library that are under ours."""

    def __init__(self) -> None:
        self._patches: dict[tuple[type, str], _Patch] = {}

    def hook(self, pool: Any, name: str, make: Callable[[Method], Method]) -> None:
        """Have ``pool.name(...)`` call what ``make`` returns, with the pool in front.

        ``make`` is given the function below, to be called likewise. A subclass that
        calls the method of its base does not come by a second time. There is nothing to
        hook where the class has no such method.
        """
        kinds = (each for each in type(pool).__mro__ if name in each.__dict__)
        kind = next(kinds, None)
        if kind is None:
            return
        patch = self._patches.get((kind, name))
        if patch is None or not patch.is_there():
            patch = self._patches[kind, name] = _Patch(kind, name)
        patch.ours[id(pool)] = make(patch.below)

    def unhook(self, number: int) -> None:
        """Forget the pool with this ``id()``. It may run in a finalizer: no lock."""
        for patch in list(self._patches.values()):
            patch.ours.pop(number, None)

    def tidy(self) -> None:
        """Take ours off where no pool needs it and it is the outermost."""
        for key, patch in list(self._patches.items()):
            if not patch.ours:
                patch.undo()
                del self._patches[key]


class _Patch:
    """One method of one class."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind = kind
        self.name = name
        self.below: Method = kind.__dict__[name]
        self.ours: dict[int, Method] = {}
        """By the ``id()`` of the pool."""
        below, of_pool = self.below, self.ours.get

        @wraps(below)
        def method(pool: Any, *args: Any, **kwargs: Any) -> Any:
            ours = of_pool(id(pool))
            if ours is None:
                return below(pool, *args, **kwargs)
            return ours(pool, *args, **kwargs)

        self._method = method
        setattr(kind, name, method)

    def is_there(self) -> bool:
        """Whether calls still come by: nobody has put the one below back."""
        current = self.kind.__dict__.get(self.name)
        while current is not None and current is not self._method:
            current = getattr(current, "__wrapped__", None)
        return current is not None

    def undo(self) -> None:
        if self.kind.__dict__.get(self.name) is self._method:
            setattr(self.kind, self.name, self.below)
