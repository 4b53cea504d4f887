"""Instructions of a code object: which variables one names, and which ones jump."""

from __future__ import annotations

import dis

JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
"""The opcodes whose argument is the offset of another instruction."""


def names_of(instruction: dis.Instruction) -> tuple[str, ...]:
    """The variables that an instruction reads or writes: two since Python 3.13."""
    value = instruction.argval
    return value if type(value) is tuple else (value,)
