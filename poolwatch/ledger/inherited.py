"""Stacks that checked out a connection opened before the process forked.

Parent and child share the session of such a connection. One short hold is enough to
mix up their results, so :mod:`poolwatch.agent.inherited` records each checkout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.model import InheritedUse

if TYPE_CHECKING:
    from poolwatch.stacks.capture import CapturedStack


class InheritedCheckouts:
    """The checkouts of inherited connections by one stack."""

    __slots__ = ("backend_pid", "last", "logged", "stack")

    def __init__(self, stack: CapturedStack, backend_pid: int | None) -> None:
        self.stack = stack
        self.backend_pid = backend_pid
        """Backend of the first inherited connection checked out here."""
        self.last = 0.0
        """``time.monotonic()`` of the last checkout."""
        self.logged = False
        """Whether this use was already logged."""

    def record(self, now: float) -> InheritedUse:
        """Return the record for a snapshot taken at ``now`` (``time.monotonic()``)."""
        return InheritedUse(self.stack.site(), self.backend_pid, now - self.last)
