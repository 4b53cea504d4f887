"""One line of a stack: the record that every other one is made with.

By itself, because whoever captures stacks needs it, and none of the other records.
"""

from __future__ import annotations

from dataclasses import dataclass


# What dataclass() would generate is written out: it takes a millisecond and a half, in
# every application that is instrumented and at every start of pytest.
@dataclass(init=False, repr=False, eq=False)
class Frame:
    """One line of a stack: where a function was, not the frame object itself.

    Never changed.
    """

    __slots__ = ("file", "function", "line")

    file: str
    """Path as the interpreter knows it (``co_filename``)."""
    line: int
    function: str

    def __init__(self, file: str, line: int, function: str) -> None:
        self.file = file
        self.line = line
        self.function = function

    def __eq__(self, other: object) -> bool:
        """By what it says."""
        if not isinstance(other, Frame):
            return NotImplemented
        return self._said() == other._said()

    def __hash__(self) -> int:
        """By what it says."""
        return hash(self._said())

    def __repr__(self) -> str:
        """As it is made."""
        return f"Frame({self.file!r}, {self.line!r}, {self.function!r})"

    def _said(self) -> tuple[str, int, str]:
        return self.file, self.line, self.function


OTHER_SITES = Frame("(other call sites)", 0, "")
"""Stands for those that are not kept apart."""
