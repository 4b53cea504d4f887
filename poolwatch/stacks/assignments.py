"""The line on which a variable of a frame got its value from a call.

``engine = create_engine(url)`` and, some lines below, ``instrument(engine)``: the code
object of the frame shows where the engine was made.
"""

from __future__ import annotations

import dis
from collections.abc import Collection
from types import CodeType

from poolwatch.model import Frame

_STORES = frozenset({"STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF"})
_FUSED = {"STORE_FAST_LOAD_FAST": 1, "STORE_FAST_STORE_FAST": 2}
"""One instruction for two, from Python 3.13 on: how many variables it stores."""
_CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"})
_SKIPPED = frozenset({"CACHE", "EXTENDED_ARG", "NOP"})


def assigned_at(code: CodeType, variable: str, makers: Collection[str]) -> Frame | None:
    """The call of one of ``makers`` whose result is all that is ever assigned.

    None if the variable is assigned several times, or something else.
    """
    instructions = [
        each for each in dis.get_instructions(code) if each.opname not in _SKIPPED
    ]
    stores = [
        at
        for at, each in enumerate(instructions)
        if (each.opname in _STORES and each.argval == variable)
        or (each.opname in _FUSED and variable in each.argval[: _FUSED[each.opname]])
    ]
    if len(stores) != 1 or not stores[0]:
        return None
    call = instructions[stores[0] - 1]
    if call.opname not in _CALLS or call.positions is None:
        return None
    line, column = call.positions.lineno, call.positions.col_offset
    if line is None or column is None:
        return None
    called = {
        each.argval
        for each in instructions[: stores[0] - 1]
        if each.positions and each.positions.lineno == line
        if each.positions.col_offset == column and isinstance(each.argval, str)
    }
    if called.isdisjoint(makers):
        return None
    return Frame(code.co_filename, line, code.co_name)
