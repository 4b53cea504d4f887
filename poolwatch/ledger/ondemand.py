"""Attributes that are made when somebody first asks for them.

Like ``functools.cached_property``, but two threads that ask at once get the same one
(that of Python 3.12 and later takes no lock), and without a function for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class OnDemand(Generic[T]):
    """One such attribute; ``make`` is called for it, once an object."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn its name."""
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> OnDemand[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> OnDemand[T] | T:
        """Make it: from then on it is found before this is asked."""
        if instance is None:
            return self
        value: T = instance.__dict__.setdefault(self._name, self._make())
        return value
