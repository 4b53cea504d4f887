"""Which lines of the application make pools, for which database, and how many.

A pool that is made inside a function is made again at every call. One look at the pools
that are alive does not show that; what was counted when they were made does.

The body of a module or class runs once, so what it makes is not counted. What a
comprehension makes counts as one call, wherever it stands, as long as no pool of that
set is used. From Python 3.12 on a comprehension has no frame of its own: its bytecode
shows it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from inspect import CO_OPTIMIZED
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from poolwatch.model import LATEST, Frame

if TYPE_CHECKING:
    from types import CodeType

    from poolwatch.model import PoolOrigin

Use = Literal[0, 1, 2]
"""Of a pool: unused, has opened a connection, has lent one."""
_MOST_PLACES = 128
"""Places kept apart; pools made at further ones are not counted."""
_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
_ADDS = frozenset({"LIST_APPEND", "SET_ADD", "MAP_ADD"})
_ATOMS = (str, bytes, int, float, bool, type(None))


class _Origin:
    __slots__ = (
        "alive",
        "latest",
        "latest_set",
        "made",
        "most_alive",
        "site",
        "together",
        "url",
    )

    def __init__(self, site: Frame, url: str) -> None:
        self.site = site
        self.url = url
        self.made = 0
        self.alive: dict[str, None] = {}
        self.most_alive = 0
        self.latest: deque[float] = deque(maxlen=LATEST)
        """When it was called."""
        self.together = 0
        """Pools that one comprehension made after its first."""
        self.latest_set: set[str] = set()
        """The pools of the latest call, by their ids."""


class PoolOrigins:
    """Those of one process. Written without a lock: see the ledger."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, _Origin] = {}
        self._by_pool: dict[str, _Origin] = {}

    def note(
        self,
        stack: Sequence[Frame],
        url: str | None,
        purpose: Hashable,
        pool_id: str,
        *,
        codes: Sequence[tuple[CodeType, int]] = (),
        use: Callable[[str], Use] = lambda _: 0,
    ) -> None:
        """Count a pool that is made now by the code of that stack, innermost first.

        ``purpose`` tells pools for one URL apart that are meant to be several. Code of
        a library alone, and a database that is not known, are no mistake of the
        application's. ``codes`` is the stack before it was put into words.
        """
        from poolwatch.stacks.compare import taking_frames  # once for a pool

        frames = taking_frames(stack, launcher=True)
        if url is None or not frames:
            return
        at, site = _function_of(stack, stack.index(frames[0]))
        if codes and not codes[at][0].co_flags & CO_OPTIMIZED:
            return  # the body of a module or class
        key = site, url, purpose
        origin = self._by_key.get(key)
        if origin is None:
            if len(self._by_key) >= _MOST_PLACES:
                return
            origin = self._by_key[key] = _Origin(site, url)
        done = max(map(use, origin.latest_set), default=2)
        where = dict(zip(stack, codes, strict=False))
        if _are_a_set(done, [(frame, where.get(frame)) for frame in frames]):
            origin.together += 1
        else:
            origin.latest_set.clear()
            origin.latest.append(monotonic())
        if len(origin.latest_set) < _MOST_PLACES:
            origin.latest_set.add(pool_id)
        origin.made += 1
        origin.alive[pool_id] = None
        origin.most_alive = max(origin.most_alive, len(origin.alive))
        self._by_pool[pool_id] = origin

    def gone(self, pool_id: str) -> None:
        """Take note that a pool is watched no more: mostly it was collected."""
        origin = self._by_pool.pop(pool_id, None)
        if origin is not None:
            origin.alive.pop(pool_id, None)

    def records(self, now: float) -> list[PoolOrigin]:
        """All that is known, for who looks now."""
        from poolwatch.model import PoolOrigin  # whoever looks has it

        return [
            PoolOrigin(
                each.site,
                each.url,
                each.made,
                (*list(each.alive),),
                each.most_alive,
                tuple([now - at for at in list(each.latest)]),
                each.together,
            )
            for each in list(self._by_key.values())
        ]


def _function_of(stack: Sequence[Frame], at: int) -> tuple[int, Frame]:
    """Where the function is that a comprehension stands in, and the line in it."""
    site = stack[at]
    for outer in stack[at + 1 :]:
        if stack[at].function not in _COMPREHENSIONS or outer.file != site.file:
            break
        at += 1
    return at, Frame(site.file, site.line, stack[at].function)


def _are_a_set(
    done: int, frames: Sequence[tuple[Frame, tuple[CodeType, int] | None]]
) -> bool:
    """Whether the pool that these frames make is of one set with the latest ones.

    ``done`` is the most that was done with any of those. Some pools connect as they are
    made. If a comprehension calls a function for each, that is taken for a use.
    """
    return any(
        code is not None
        and done <= (0 if nth else 1)
        and _in_comprehension(frame.function, *code)
        for nth, (frame, code) in enumerate(frames)
    )


def _in_comprehension(function: str, code: CodeType, lasti: int) -> bool:
    """Whether an instruction is executed once for each item of a comprehension."""
    if function in _COMPREHENSIONS:
        return True
    if sys.version_info < (3, 12):
        return False
    import dis  # only where a second pool is made, and the first is not used yet

    before = ""
    for each in dis.get_instructions(code):
        loops = each.opname.startswith("JUMP_BACKWARD") and before in _ADDS
        if loops and each.argval <= lasti < each.offset:
            return True
        if each.opname != "EXTENDED_ARG":
            before = each.opname
    return False


def fingerprint(arguments: Any) -> int:
    """Tells connection arguments apart, without keeping what may be secret in them.

    Objects are left out: a new one that is made for each pool tells nothing.
    """
    return hash(repr(_atoms(arguments)))


def _atoms(value: Any) -> Any:
    if isinstance(value, Mapping):
        pairs = [(str(key), _atoms(each)) for key, each in value.items()]
        return sorted(pairs, key=lambda pair: pair[0])
    if isinstance(value, list | tuple):
        return [_atoms(each) for each in value]
    return value if type(value) in _ATOMS else None
