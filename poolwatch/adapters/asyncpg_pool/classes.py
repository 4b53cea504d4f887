"""One object gets methods of ours: its class becomes a subclass made for it.

asyncpg's objects have no ``__dict__`` that a wrapper could be put into. Other objects
of the same class are not touched, and pay nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MARK = "_poolwatch"


def subclass(base: type, methods: Mapping[str, Any]) -> type:
    """A subclass that looks like ``base``, of which objects of ``base`` can become."""
    return type(base)(
        base.__name__,
        (base,),
        {
            **methods,
            _MARK: True,
            "__slots__": (),
            "__doc__": base.__doc__,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
        },
    )


def theirs(kind: type) -> type:
    """The class that the application knows: ``kind``, or what it was made from."""
    return next(each for each in kind.__mro__ if _MARK not in vars(each))


def give_back(thing: Any, ours: type) -> None:
    """Let ``thing`` have its class again, if it has that one of ours."""
    if type(thing) is ours:
        thing.__class__ = theirs(ours)
