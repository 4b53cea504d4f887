"""One line of a stack: the record that every other one is made with.

By itself, because whoever captures stacks needs it, and none of the other records.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass


# What dataclass() would generate is written out: it takes a millisecond and a half, in
# every application that is instrumented and at every start of pytest.
@dataclass(init=False, repr=False, eq=False)
class Frame:
    """One line of a stack: where a function was, not the frame object itself."""

    __slots__ = ("file", "function", "line")

    file: str
    """Path as the interpreter knows it (``co_filename``)."""
    line: int
    function: str

    def __init__(self, file: str, line: int, function: str) -> None:
        put = object.__setattr__
        put(self, "file", file)
        put(self, "line", line)
        put(self, "function", function)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: a frame is never changed."""
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        """Refuse: a frame is never changed."""
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __reduce__(self) -> tuple[type[Frame], tuple[str, int, str]]:
        """How it is copied and pickled."""
        return Frame, self._said()

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
        file, line, function = self._said()
        return f"Frame(file={file!r}, line={line!r}, function={function!r})"

    def _said(self) -> tuple[str, int, str]:
        return self.file, self.line, self.function


OTHER_SITES = Frame("(other call sites)", 0, "")
"""Stands for those that are not kept apart."""
