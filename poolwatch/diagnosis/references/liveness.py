"""Whether a running function may still read one of its variables."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType

from poolwatch.diagnosis.references.instructions import JUMPS, names_of

_READS = ("LOAD_FAST", "DELETE_FAST")
_ENDS = ("RETURN_", "RAISE_", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD")
"""Instructions after which the next one does not follow."""
_READS_ALL = frozenset({"locals", "eval", "exec", "vars", "dir"})


@lru_cache(maxsize=64)
def may_read(code: CodeType, lasti: int, name: str) -> bool:
    """Whether a function at ``lasti`` may still read its variable of that name.

    True also if that is not known: for a module, a closure, a debugger's tricks.
    """
    if not code.co_flags & inspect.CO_OPTIMIZED or name not in code.co_varnames:
        return True
    if name in code.co_cellvars or not _READS_ALL.isdisjoint(code.co_names):
        return True
    return any(
        each.opname.startswith(_READS) and name in names_of(each)
        for each in reachable(code, lasti)
    )


def reachable(code: CodeType, lasti: int) -> Iterator[dis.Instruction]:
    """The instructions that may follow after the one at ``lasti``."""
    instructions = list(dis.get_instructions(code))
    at_offset = {each.offset: at for at, each in enumerate(instructions)}
    handlers = getattr(dis.Bytecode(code), "exception_entries", ())
    # Python 3.11 has the last cache entry of a call there
    current = max((at for at in at_offset if at <= lasti), default=0)
    seen: set[int] = set()
    pending = [at_offset[current]]
    while pending:
        at = pending.pop()
        if at in seen or at >= len(instructions):
            continue
        seen.add(at)
        each = instructions[at]
        if each.offset != current:
            yield each
        if not each.opname.startswith(_ENDS):
            pending.append(at + 1)
        if each.opcode in JUMPS:
            pending.append(at_offset.get(each.argval, at + 1))
        covering = (e for e in handlers if e.start <= each.offset < e.end)
        pending += [at_offset[e.target] for e in covering if e.target in at_offset]
