"""A ``cached_property`` whose first value stays, whichever threads come at once.

The one of the standard library has had no lock since Python 3.12: each of two threads
gets a value of its own there, and one of them is lost with all that it will record.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    made_once = cached_property
else:

    class made_once(cached_property):  # noqa: N801 - a decorator
        """Makes a value without side effects: one of two may be thrown away."""

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            return instance.__dict__.setdefault(self.attrname, self.func(instance))
