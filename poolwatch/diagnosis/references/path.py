"""The record of a reference path, importable without loading the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from poolwatch.diagnosis.circumstances import Circumstance
from poolwatch.model import Frame

if TYPE_CHECKING:
    from poolwatch.diagnosis.references.places import RootOwner

PathKind = Literal[
    "running frame", "suspended frame", "generator", "global", "thread-local",
    "context variable", "exception", "task result", "closure", "scheduled call",
    "unknown",
]  # fmt: skip


_AMBIENT = frozenset({"scoped session", "context variable"})
"""The last one is flask.g, where it is not the kind of the path."""


@dataclass(frozen=True, slots=True)
class ReferencePath:
    """The chain of references from a root to one held connection."""

    kind: PathKind
    owner: str | None
    """Name of the thread or task whose frame, context or exception is the root."""
    same_holder: bool | None
    """Whether that thread or task is the holder; None if unknown."""
    is_user: bool
    """Whether the root is code, or a module, of the application."""
    frame: Frame | None
    """Where the root's frame is now; None if the root is no frame."""
    steps: tuple[str, ...]
    """The references in words, the variable first."""
    in_hand: bool
    """The root is a running or suspended frame, or a call scheduled on an event loop,
    and no exception, context or thread-local is on the path."""
    direct: bool
    """The first variable is the session or connection itself."""
    near: bool
    """The path is so short that the connection belongs to the root, or the root's code
    names each step. Else the root can merely reach the connection somewhere in the
    application."""
    by_attributes: bool = False
    """Attributes alone lead to it, from a function of the application."""
    circumstances: tuple[Circumstance, ...] = ()
    """The circumstances of the hold that the references show."""
    user: RootOwner | None = None
    """The thread or task that is the root; None for a module or the like."""

    @property
    def ambient(self) -> bool:
        """Whether it shows only that a thread, a task or a request has the connection
        at hand: its code gets it without a variable, from a scoped session, say.
        """
        if self.kind in ("thread-local", "context variable"):
            return True
        seen = {each.kind for each in self.circumstances}
        return self.kind != "exception" and not seen.isdisjoint(_AMBIENT)

    @property
    def in_use(self) -> bool:
        """Whether the connection evidently belongs to a frame that can still use it."""
        return self.in_hand and self.near

    @property
    def words(self) -> str:
        """The path on one line."""
        return " -> ".join(self.steps)
