"""Which lines of the application create pools, for which database, and how many.

A pool that is created inside a function is created again at every call. The pools alive
at one moment do not show that, so pools are counted when they are created.

The body of a module or class runs once, so the pools it creates are not counted. The
pools of one comprehension count as one call, as long as none of them is used. From
Python 3.12 on a comprehension has no frame of its own: its bytecode identifies it.
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

UseLevel = Literal[0, 1, 2]
"""Of a pool: unused (0), has opened a connection (1), has lent one (2)."""
_MAX_ORIGINS = 128
"""Maximum number of origins; pools created by further ones are not counted."""
_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
_ADDING = frozenset({"LIST_APPEND", "SET_ADD", "MAP_ADD"})
_PLAIN_TYPES = (str, bytes, int, float, bool, type(None))


class _Origin:
    """A line that creates pools for one database."""

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
        """``time.monotonic()`` of the latest calls."""
        self.together = 0
        """Pools that a comprehension created after its first one."""
        self.latest_set: set[str] = set()
        """Ids of the pools of the latest call."""


class PoolOrigins:
    """The origins of a process's pools. Written without a lock: see the ledger."""

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
        use_level: Callable[[str], UseLevel] = lambda _: 0,
    ) -> None:
        """Count a pool that is being created by ``stack`` (innermost first).

        ``purpose`` distinguishes pools for one URL that are separate by intent. A pool
        is not counted if only library code created it or if its URL is unknown.
        ``codes`` are the code objects of the stack, each with its offset.
        """
        from poolwatch.stacks.compare import user_frames  # once per pool

        frames = user_frames(stack, launcher=True)
        if url is None or not frames:
            return
        at, site = _enclosing_function(stack, stack.index(frames[0]))
        if codes and not codes[at][0].co_flags & CO_OPTIMIZED:
            return  # the body of a module or class
        key = site, url, purpose
        origin = self._by_key.get(key)
        if origin is None:
            if len(self._by_key) >= _MAX_ORIGINS:
                return
            origin = self._by_key[key] = _Origin(site, url)
        most_used = max(map(use_level, origin.latest_set), default=2)
        code_of = dict(zip(stack, codes, strict=False))
        if _is_one_set(most_used, [(frame, code_of.get(frame)) for frame in frames]):
            origin.together += 1
        else:
            origin.latest_set.clear()
            origin.latest.append(monotonic())
        if len(origin.latest_set) < _MAX_ORIGINS:
            origin.latest_set.add(pool_id)
        origin.made += 1
        origin.alive[pool_id] = None
        origin.most_alive = max(origin.most_alive, len(origin.alive))
        self._by_pool[pool_id] = origin

    def forget_pool(self, pool_id: str) -> None:
        """Note that a pool is no longer recorded, usually because it was collected."""
        origin = self._by_pool.pop(pool_id, None)
        if origin is not None:
            origin.alive.pop(pool_id, None)

    def records(self, now: float) -> list[PoolOrigin]:
        """Return the records for a snapshot taken at ``now`` (``time.monotonic()``)."""
        from poolwatch.model import PoolOrigin  # loaded by the first viewer

        return [
            PoolOrigin(
                origin.site,
                origin.url,
                origin.made,
                (*list(origin.alive),),
                origin.most_alive,
                tuple([now - at for at in list(origin.latest)]),
                origin.together,
            )
            for origin in list(self._by_key.values())
        ]


def _enclosing_function(stack: Sequence[Frame], at: int) -> tuple[int, Frame]:
    """Return the index of the function around a comprehension, and its call site."""
    site = stack[at]
    for outer in stack[at + 1 :]:
        if stack[at].function not in _COMPREHENSIONS or outer.file != site.file:
            break
        at += 1
    return at, Frame(site.file, site.line, stack[at].function)


def _is_one_set(
    most_used: int, frames: Sequence[tuple[Frame, tuple[CodeType, int] | None]]
) -> bool:
    """Whether a comprehension creates this pool together with the latest ones.

    ``most_used`` is the highest use of the latest pools. Some pools connect on
    creation, so an opened connection does not count as use. It does if the
    comprehension calls a function, which may connect on purpose.
    """
    return any(
        code is not None
        and most_used <= (0 if nth else 1)
        and _in_comprehension(frame.function, *code)
        for nth, (frame, code) in enumerate(frames)
    )


def _in_comprehension(function: str, code: CodeType, lasti: int) -> bool:
    """Whether an instruction is executed once per item of a comprehension."""
    if function in _COMPREHENSIONS:
        return True
    if sys.version_info < (3, 12):
        return False
    import dis  # rare: a second pool, while the first is unused

    previous = ""
    for instruction in dis.get_instructions(code):
        loops = instruction.opname.startswith("JUMP_BACKWARD") and previous in _ADDING
        if loops and instruction.argval <= lasti < instruction.offset:
            return True
        if instruction.opname != "EXTENDED_ARG":
            previous = instruction.opname
    return False


def fingerprint(arguments: Any) -> int:
    """Hash connection arguments, to compare them without storing secrets.

    Objects other than plain values are left out: they may be new for every pool.
    """
    return hash(repr(_plain(arguments)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        pairs = [(str(key), _plain(item)) for key, item in value.items()]
        return sorted(pairs, key=lambda pair: pair[0])
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if type(value) in _PLAIN_TYPES else None
