"""Connections that were opened before the process forked, and the lines that take them.

Parent and child share the session of such a connection. One short hold is enough to
mix up their answers, so :mod:`poolwatch.agent.inherited` records each checkout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.model import InheritedUse

if TYPE_CHECKING:
    from poolwatch.stacks.capture import Path


class InheritedPath:
    """A stack that has taken such a connection."""

    __slots__ = ("backend_pid", "last", "logged", "path")

    def __init__(self, path: Path, backend_pid: int | None) -> None:
        self.path = path
        self.backend_pid = backend_pid
        """Backend of the first such connection."""
        self.last = 0.0
        """``time.monotonic()`` of its last use."""
        self.logged = False
        """Already in the log."""

    def record(self, now: float) -> InheritedUse:
        """Return what is reported of it at ``now`` (``time.monotonic()``)."""
        return InheritedUse(self.path.site(), self.backend_pid, now - self.last)
