"""One line of a stack: the record that every other one is made with.

By itself, because whoever captures stacks needs it, and none of the other records.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a stack: where a function was, not the frame object itself."""

    file: str
    """Path as the interpreter knows it (``co_filename``)."""
    line: int
    function: str


OTHER_SITES = Frame("(other call sites)", 0, "")
"""Stands for those that are not kept apart."""
