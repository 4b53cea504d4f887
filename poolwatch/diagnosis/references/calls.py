"""Calls, not functions: is the function on the stack in the call that checked out?

A worker is in the same function again for its next job. Three things show that: a
caller has moved on from the line of the call; a variable of the line that checked out
has no value; or its session or connection is another one. Otherwise it may be the same.
"""

from __future__ import annotations

import dis
import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any, NamedTuple

from poolwatch.diagnosis.references.follow import (
    Guide,
    bases_of,
    class_name,
    local_variables,
    module_of,
)
from poolwatch.diagnosis.references.places import NO_OWNER, unnamed_place
from poolwatch.diagnosis.references.walk import Walk
from poolwatch.model import Frame
from poolwatch.stacks.capture import MAX_FRAMES, Pairs
from poolwatch.stacks.compare import frames_on_both

_MAX_VISITED = 500
"""Most objects that are visited behind the variables of one function."""
_USES = frozenset({"Connection", "AsyncConnection", "Session", "AsyncSession"})
_RESUMED_ELSEWHERE = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def callers_moved_on(
    exact: Pairs, stack: Sequence[Frame], now: Sequence[Frame]
) -> bool:
    """Whether a caller is at another line than when it made the call that checked out.

    A generator does not count: another line may resume it. ``exact`` is the inner part
    of ``stack``.
    """
    both = _frames_on_both(stack, now)
    return any(
        stack[outer].line != now[outer_now].line
        and not exact[inner][0].co_flags & _RESUMED_ELSEWHERE
        for (outer, outer_now), (inner, _) in pairwise(both)
        if outer < len(exact)
    )


def variables_differ(
    exact: Pairs,
    stack: Sequence[Frame],
    now: Sequence[Frame],
    frames: Sequence[FrameType],
    proxy: Any,
) -> bool:
    """Whether the variables of the line that checked out show another call.

    ``frames`` are those of ``now``, the outermost first, if they are the same still.
    """
    for at, at_now in _frames_on_both(stack, now):
        from_outermost = len(now) - 1 - at_now
        if at >= len(exact) or from_outermost >= len(frames):
            continue
        (code, lasti), frame = exact[at], frames[from_outermost]
        if frame.f_code is code:
            block = _block_around(code, lasti)
            if block.names and not block.begin <= frame.f_lasti <= block.end:
                variables = dict(zip(*local_variables(frame), strict=False))
                if not block.names <= variables.keys():
                    return True
                if _has_others(map(variables.get, block.steady), proxy):
                    return True
    return False


def _frames_on_both(
    stack: Sequence[Frame], now: Sequence[Frame]
) -> list[tuple[int, int]]:
    """The frames on both stacks; none if a recursion could make pairs of strangers.

    Of a deep stack only the inner part is known.
    """
    both = frames_on_both(stack, now)
    if not both:
        return []
    ends = [(each[-1].file, each[-1].function) for each in (stack, now)]
    if ends[0] == ends[1] and max(len(stack), len(now)) < MAX_FRAMES:
        return both
    for frames in (stack, now):
        count = Counter((each.file, each.function) for each in frames)
        names = [(stack[at].file, stack[at].function) for at, _ in both]
        if any(count[name] > 1 for name in names):
            return []
    return both


def _has_others(values: Iterable[Any], proxy: Any) -> bool:
    """Whether these are sessions or connections, all without that proxy."""
    mine = [each for each in values if _is_session_or_connection(type(each))]
    guide = Guide()
    place = unnamed_place("running frame", NO_OWNER, "", mine)
    walk = Walk([place], guide, {id(proxy): ""}, set())
    finished = walk.go(_MAX_VISITED)
    guide.forget()
    return bool(mine) and finished and not walk.hits


def _is_session_or_connection(kind: type) -> bool:
    return any(
        class_name(base) in _USES and module_of(base).startswith("sqlalchemy.")
        for base in bases_of(kind)
    )


class _Block(NamedTuple):
    """The code around a call that is run to its end once the call has returned."""

    begin: int
    end: int
    names: frozenset[str]
    """The variables that have a value after it, and are never deleted."""
    steady: frozenset[str] = frozenset()
    """Those of them that get no other value within the same call."""


@lru_cache(maxsize=256)
def _block_around(code: CodeType, lasti: int) -> _Block:
    instructions = list(dis.get_instructions(code))
    targets = {each.argval for each in instructions if each.opcode in _JUMPS}
    unset: set[str] = set()
    block: list[dis.Instruction] = []
    passed = False
    for each in instructions:
        if each.opname in _UNSETS:
            unset.update(_names(each))
        if each.offset in targets or each.opname in _HANDLERS:
            passed |= each.offset > lasti
            block = block if passed else []
        if not passed:
            block.append(each)
        if each.opcode in _JUMPS or each.opname.startswith(_LEAVES):
            passed |= each.offset >= lasti
            block = block if passed else []
    if not passed or not code.co_flags & inspect.CO_OPTIMIZED:
        return _Block(0, 0, frozenset())
    names = {
        name
        for each in block
        if each.opname.startswith(_SETS if each.offset < lasti else _STORES)
        for name in _names(each)
    }
    names &= {*code.co_varnames, *code.co_cellvars} - unset
    steady = names - _assigned_again(instructions)
    begin, end = block[0].offset, block[-1].offset
    return _Block(begin, end, frozenset(names), frozenset(steady))


def _assigned_again(instructions: Sequence[dis.Instruction]) -> set[str]:
    """The variables that are assigned at two places, or within a loop."""
    loops = [
        (each.argval, each.offset)
        for each in instructions
        if each.opcode in _JUMPS and each.argval <= each.offset
    ]
    again: set[str] = set()
    once: set[str] = set()
    for each in instructions:
        if each.opname.startswith(_STORES):
            in_loop = any(first <= each.offset <= last for first, last in loops)
            names = set(_names(each))
            again |= names if in_loop else names & once
            once |= names
    return again


def _names(instruction: dis.Instruction) -> Iterable[str]:
    value = instruction.argval
    return value if type(value) is tuple else (value,)


_AWAITS = ("SEND", "JUMP_BACKWARD_NO_INTERRUPT")
"""The jumps of an ``await``, which comes to its end like a call."""
_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs)) - {
    dis.opmap[name] for name in _AWAITS if name in dis.opmap
}
_LEAVES = ("RETURN_", "RERAISE", "RAISE_")
_HANDLERS = ("PUSH_EXC_INFO", "CLEANUP_THROW")
_UNSETS = ("DELETE_FAST", "DELETE_DEREF", "LOAD_FAST_AND_CLEAR")
_STORES = ("STORE_FAST", "STORE_DEREF")
_SETS = (*_STORES, "LOAD_FAST", "LOAD_DEREF")
"""What a function loads has a value."""
