"""Tells two calls of one function apart: is the call that checked out still running?

A worker is in the same function again for its next job. Three things show that: a
caller has moved on from the line of the call; a variable of the line that checked out
has no value; or its session or connection is another one. Otherwise it may be the same.
"""

from __future__ import annotations

import dis
import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any, NamedTuple

from poolwatch.diagnosis.references.attributes import bases_of, class_name, module_of
from poolwatch.diagnosis.references.follow import Guide
from poolwatch.diagnosis.references.frames import traces, variables_of
from poolwatch.diagnosis.references.instructions import JUMPS, names_of
from poolwatch.diagnosis.references.places import NO_OWNER, unnamed_place
from poolwatch.diagnosis.references.walk import Walk
from poolwatch.model import Frame
from poolwatch.stacks.capture import MAX_FRAMES, Pairs

_MAX_VISITED = 500
"""Most objects that are visited behind the variables of one function."""
_USES = frozenset({"Connection", "AsyncConnection", "Session", "AsyncSession"})
_RESUMED_ELSEWHERE = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


@dataclass(frozen=True, slots=True)
class Stacks:
    """The stack at a checkout, and the holder's stack now, innermost frame first."""

    exact: Pairs
    """The inner part of the stack at the checkout."""
    at_checkout: Sequence[Frame]
    now: Sequence[Frame]
    both: Sequence[tuple[int, int]]
    """The positions of the frames that are on both stacks, outermost first."""

    def callers_moved_on(self) -> bool:
        """Whether a caller is at another line than when it made the call.

        A generator does not count: another line may resume it.
        """
        return any(
            self.at_checkout[outer].line != self.now[outer_now].line
            and not self.exact[inner][0].co_flags & _RESUMED_ELSEWHERE
            for (outer, outer_now), (inner, _) in pairwise(self.both)
            if outer < len(self.exact)
        )

    def variables_differ(self, frames: Sequence[FrameType], proxy: Any) -> bool:
        """Whether the variables of the line that checked out show another call.

        ``frames`` are those of ``now``, the outermost first, if they are the same.
        """
        for at, at_now in self.both:
            from_outermost = len(self.now) - 1 - at_now
            if at >= len(self.exact) or from_outermost >= len(frames):
                continue
            (code, lasti), frame = self.exact[at], frames[from_outermost]
            if any(map(traces, frames[from_outermost + 1 : from_outermost + 2])):
                continue  # reading it would change its variables, see follow
            if frame.f_code is code and _is_another(frame, lasti, proxy):
                return True
        return False

    def are_of_one_thread(self) -> bool:
        """Whether no frame can have been paired with that of another recursive call.

        Of a deep stack only the inner part is known.
        """
        stacks = self.at_checkout, self.now
        ends = [(each[-1].file, each[-1].function) for each in stacks]
        if ends[0] == ends[1] and max(map(len, stacks)) < MAX_FRAMES:
            return True
        for frames in stacks:
            count = Counter((each.file, each.function) for each in frames)
            paired = [self.at_checkout[at] for at, _ in self.both]
            if any(count[each.file, each.function] > 1 for each in paired):
                return False
        return True


def _is_another(frame: FrameType, lasti: int, proxy: Any) -> bool:
    block = _block_around(frame.f_code, lasti)
    if not block.names or block.begin <= frame.f_lasti <= block.end:
        return False
    variables = variables_of(frame)
    if not block.names <= variables.keys():
        return True
    return _has_others(map(variables.get, block.steady), proxy)


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
    """The variables among ``names`` that are assigned only once within a call."""


@lru_cache(maxsize=256)
def _block_around(code: CodeType, lasti: int) -> _Block:
    instructions = list(dis.get_instructions(code))
    jumps = {each.offset: each.argval for each in _jumps(instructions)}
    targets = set(jumps.values())
    unset: set[str] = set()
    block: list[dis.Instruction] = []
    passed = False
    for each in instructions:
        if each.opname in _UNSETS:
            unset.update(names_of(each))
        if each.offset in targets or each.opname in _HANDLERS:
            passed |= each.offset > lasti
            block = block if passed else []
        if not passed:
            block.append(each)
        if each.offset in jumps or each.opname.startswith(_LEAVES):
            passed |= each.offset >= lasti
            block = block if passed else []
    if not passed or not code.co_flags & inspect.CO_OPTIMIZED:
        return _Block(0, 0, frozenset())
    names = {
        name
        for each in block
        if each.opname.startswith(_SETS if each.offset < lasti else _STORES)
        for name in names_of(each)
    }
    names &= {*code.co_varnames, *code.co_cellvars} - unset
    steady = names - _assigned_again(instructions)
    begin, end = block[0].offset, block[-1].offset
    return _Block(begin, end, frozenset(names), frozenset(steady))


def _assigned_again(instructions: Sequence[dis.Instruction]) -> set[str]:
    """The variables that are assigned at two places, or within a loop."""
    loops = [
        (each.argval, each.offset)
        for each in _jumps(instructions)
        if each.argval <= each.offset
    ]
    again: set[str] = set()
    once: set[str] = set()
    for each in instructions:
        if each.opname.startswith(_STORES):
            in_loop = any(first <= each.offset <= last for first, last in loops)
            names = set(names_of(each))
            again |= names if in_loop else names & once
            once |= names
    return again


def _jumps(instructions: Sequence[dis.Instruction]) -> list[dis.Instruction]:
    """All jumps but those of an ``await``, which comes to its end like a call."""
    ends = {each.offset for each in instructions if each.opname == "END_SEND"}
    return [
        each
        for each in instructions
        if each.opcode in JUMPS
        and each.opname not in _AWAITS
        and each.argval not in ends
    ]


_AWAITS = ("SEND", "JUMP_BACKWARD_NO_INTERRUPT")
_LEAVES = ("RETURN_", "RERAISE", "RAISE_")
_HANDLERS = ("PUSH_EXC_INFO",)
_UNSETS = ("DELETE_FAST", "DELETE_DEREF", "LOAD_FAST_AND_CLEAR")
_STORES = ("STORE_FAST", "STORE_DEREF")
_SETS = (*_STORES, "LOAD_FAST", "LOAD_DEREF")
"""A variable that a function loads has a value."""
