"""Circumstances of a hold: facts that decide which remedy would have helped.

The agent collects them for the few holds that a finding is about;
:mod:`poolwatch.diagnosis.remedies` has the words.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from poolwatch.model import Frame

CircumstanceKind = Literal[
    "lazy load", "refresh", "used after close", "session on connection", "only commits",
    "cleanup without effect", "task cancelled", "scoped session", "thread-local",
    "context variable", "request", "exit stack", "generator", "coroutine",
    "no reference", "with block", "own return",
]  # fmt: skip


class Circumstance(NamedTuple):
    """One thing that was seen around a hold."""

    kind: CircumstanceKind
    where: Frame | None = None
    """The line that shows it."""
    name: str = ""
    """Of the attribute that was loaded, or of the call that would have helped."""
