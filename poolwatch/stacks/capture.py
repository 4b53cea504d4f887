"""Cheap stack capture: a few pointers at checkout, lines and names later.

A stack is stored as (code object, ``f_lasti``) pairs, never as frames: a frame keeps
its locals alive, and with them the very connection that leaks. Lines and names are
resolved when a stack is read.

Walking thirty frames at every checkout would cost more than the checkout. Equal stacks
are the rule, though, so captured stacks live in a tree of chunks of eight frames, the
innermost first, and a hold only points to a node. A walk stops at the first chunk that
completes the required number of user frames. The frames beyond are the *tail* of the
path. It is recorded at the first checkout on the path, compared at the next few and
then ever more rarely, and cut back to the frames that all of them had in common. So the
call site and its nearest callers are always exact, and the far end has been confirmed
by every comparison so far. A viewer adds the rest from the running stack, if the holder
is still in the same function (see ``extended``).

There are two walks. Under asyncio SQLAlchemy runs in a greenlet, whose frames end in
SQLAlchemy; the user's ``await`` chain is in the frames of the parent greenlet.
"""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import CodeType, FrameType
from typing import Any, TypeVar

from poolwatch.model import Frame
from poolwatch.runtime.gc_pause import undisturbed
from poolwatch.stacks.code_owner import (
    application_frames,
    is_ours,
    note_fileless_function,
)

T = TypeVar("T")
Pairs = tuple[tuple[CodeType, int], ...]

CHUNK = 8
"""Frames in one step of the walk; the fast walk below is written out for it."""
DEEPEST = 64
"""Most frames of a stack that are recorded."""
USER_FRAMES_WANTED = 4
"""Number of the user's innermost frames that are exact in every path."""
_COMPARISONS = 4
"""Comparisons of a tail before the fast walk trusts it for a while."""
_MOST_NODES = 512
"""Most nodes of the tree before it is rebuilt."""


_NO_CHILDREN: dict[tuple[int, ...], Path] = {}
"""The children of most paths. Never written to."""


class Path:
    """One chunk of a stack, and through its parents the whole of it."""

    __slots__ = (
        "_frames",
        "_last_frames",
        "_site_at",
        "_tail",
        "bottom",
        "children",
        "codes",
        "comparisons",
        "deeper",
        "depth",
        "fast",
        "lastis",
        "parent",
        "wanted",
    )

    def __init__(
        self,
        parent: Path | None,
        codes: tuple[CodeType, ...] = (),
        lastis: tuple[int, ...] = (),
    ) -> None:
        self.parent = parent
        self.codes = codes
        self.lastis = lastis
        self.children = _NO_CHILDREN
        self.fast = False
        """Whether the walk may stop here without a comparison."""
        self.deeper = False
        """Whether the walk must go on, because there are too few user frames so far."""
        self.bottom = 0
        """Frames of this chunk up to a bottom, where every walk ends; 0 without one."""
        self.comparisons = 0
        self._tail: Pairs = ()
        self._site_at: tuple[CodeType, int] | None = None
        self._frames: tuple[tuple[Frame, ...], tuple[Frame, ...]] | None = None
        self._last_frames: tuple[Frame, ...] = ()
        self.depth = len(codes)
        self.wanted = USER_FRAMES_WANTED
        """Number of the application's own frames that the walk needs."""
        if parent is not None:
            self.depth += parent.depth
            self.wanted = parent.wanted

    def frames(self, live: tuple[Frame, ...] = ()) -> tuple[Frame, ...]:
        """The resolved stack, innermost first; ``live``: the holder's running stack."""
        if self._frames is None:
            self._frames = resolve(self.near()), resolve(self._tail)
        frames, last_frames = extended(*self._frames, live), self._last_frames
        if frames == last_frames:  # equal stacks are one object in a snapshot
            return last_frames
        self._last_frames = frames
        return frames

    def site(self) -> Frame | None:
        """The call site: the innermost frame of the application's own."""
        if self._site_at is None:
            self._site_at = _site_of(self.near() + self._tail)
        return None if self._site_at is None else _frame(*self._site_at)

    def recheck_tail(self) -> None:
        """Compare the tail at the next hold on this path."""
        self.fast = False

    def must_continue(self, own: Sequence[int], *, beyond: bool) -> bool:
        """Whether the walk must go on from here: decides ``deeper``.

        ``own`` are the positions of the application's own frames in the whole stack.
        """
        if beyond and self.depth < DEEPEST:
            near = sum(at < self.depth for at in own)
            self.deeper = self.deeper or near < self.wanted
        return self.deeper

    def learn(self, tail: Pairs) -> None:
        """Record or compare the tail at the end of a walk: decides ``fast``."""
        self.comparisons += 1
        if self.comparisons == 1:
            self._tail = tail
            self._site_at = _site_of(self.near() + tail)  # later tails may be shorter
        elif tail != self._tail:
            self._tail, self._frames = _common(tail, self._tail), None
        if self.comparisons >= _COMPARISONS:
            self.fast = True

    def exact(self) -> tuple[Frame, ...]:
        """The resolved frames of the walk, without the tail."""
        return resolve(self.near())

    def pairs(self) -> Pairs:
        """The frames of the walk, and the tail."""
        return self.near() + self._tail

    def near(self) -> Pairs:
        """The frames of the walk, without the tail."""
        near = tuple(zip(self.codes, self.lastis, strict=True))
        near = near[: self.bottom] if self.bottom else near
        return (self.parent.near() if self.parent else ()) + near


_NO_CHILD = Path(None, (compile("", "", "exec"),) * CHUNK)
"""Stands for a missing child: no frame has its code."""


class CallSites:
    """The tree of all paths seen, bounded."""

    def __init__(
        self,
        user_frames: int = USER_FRAMES_WANTED,
        bottoms: Mapping[int, CodeType] | None = None,
    ) -> None:
        """Record at least ``user_frames`` of the user's innermost frames exactly.

        ``bottoms``, by id, is code beyond which no walk goes.
        """
        self._user_frames = user_frames
        self._root = self._new_root()
        self._tails: dict[tuple[int, ...], Pairs] = {}
        self._nodes: list[Path] = []
        self._bottoms: Mapping[int, CodeType] = {} if bottoms is None else bottoms

    @cached_property
    def of_statements(self) -> CallSites:
        """A separate tree for the stacks of statements.

        There are many of them, and one user frame of each is enough, because the
        checkout has recorded the others.
        """
        return CallSites(user_frames=1, bottoms=self._bottoms)

    def capture(self, frame: FrameType | None) -> Path:
        """Return the path of a stack that begins at ``frame``.

        The loop is unrolled to eight frames per step, because a plain loop takes twice
        as long on CPython 3.11, and this code runs at every checkout.
        """
        path = self._root
        while True:
            near = frame
            try:
                c0, l0, frame = frame.f_code, frame.f_lasti, frame.f_back  # type: ignore[union-attr]
                c1, l1, frame = frame.f_code, frame.f_lasti, frame.f_back  # type: ignore[union-attr]
                c2, l2, frame = frame.f_code, frame.f_lasti, frame.f_back  # type: ignore[union-attr]
                c3, l3, frame = frame.f_code, frame.f_lasti, frame.f_back  # type: ignore[union-attr]
                c4, l4, frame = frame.f_code, frame.f_lasti, frame.f_back  # type: ignore[union-attr]
                c5, l5, frame = frame.f_code, frame.f_lasti, frame.f_back  # type: ignore[union-attr]
                c6, l6, frame = frame.f_code, frame.f_lasti, frame.f_back  # type: ignore[union-attr]
                c7, l7, frame = frame.f_code, frame.f_lasti, frame.f_back  # type: ignore[union-attr]
            except AttributeError:  # fewer than eight frames are left
                return self._end(path, near)
            child = path.children.get((l0, l1, l2, l3, l4, l5, l6, l7), _NO_CHILD)
            known = child.codes
            # by identity: equal code objects may come from different files
            if not (
                known[0] is c0
                and known[1] is c1
                and known[2] is c2
                and known[3] is c3
                and known[4] is c4
                and known[5] is c5
                and known[6] is c6
                and known[7] is c7
            ):
                return self._descend(path, near)
            path = child
            if path.fast:
                return path
            if not path.deeper:
                beyond = (
                    [] if path.bottom else self._rest(frame, DEEPEST - path.depth)[0]
                )
                own = _own_positions([*path.near(), *_pairs(beyond)])
                if not path.must_continue(own, beyond=bool(beyond)):
                    self._learn(path, beyond)
                    return path

    def capture_across_greenlets(self, frame: FrameType | None, current: Any) -> Path:
        """Like capture, continued with the frames of the parent greenlets."""
        frames = list(_chain(frame, DEEPEST))
        parent = current.parent
        while parent is not None and len(frames) < DEEPEST:
            frames += _chain(parent.gr_frame, DEEPEST - len(frames))
            parent = parent.parent
        return self._leaf(self._root, frames)

    def _descend(self, path: Path, frame: FrameType | None) -> Path:
        """Continue beyond the known part of the tree, adding nodes for new chunks."""
        frames, bottom = self._rest(frame, DEEPEST - path.depth)
        pairs, at = [*path.near(), *_pairs(frames)], 0
        own: list[int] | None = None
        while not path.bottom:
            chunk = frames[at : at + CHUNK]
            if len(chunk) < CHUNK:
                return self._leaf(path, chunk)
            path = self._child(path, chunk)
            at += CHUNK
            if bottom and at >= bottom:
                path.bottom, path.fast = bottom - at + CHUNK, True
            if path.fast:
                break
            rest = frames[at:]
            if path.deeper:
                continue
            if own is None:
                own = _own_positions(pairs)
            if not path.must_continue(own, beyond=bool(rest)):
                self._learn(path, rest)
                break
        return path

    def _rest(self, frame: FrameType | None, most: int) -> tuple[list[FrameType], int]:
        """The rest of a stack, and the number of frames up to a bottom; 0 without one.

        A stack with a bottom ends with the chunk that contains it.
        """
        frames: list[FrameType] = []
        bottoms, bottom = self._bottoms, 0
        while frame is not None and len(frames) < most:
            frames.append(frame)
            if id(frame.f_code) in bottoms and not bottom:
                bottom = len(frames)
                most = min(most, -(-bottom // CHUNK) * CHUNK)
            frame = frame.f_back
        return frames, bottom

    def _end(self, path: Path, near: FrameType | None) -> Path:
        """The last, short chunk of a stack; empty if it ends with a full one."""
        return self._leaf(path, list(_chain(near, CHUNK)))

    def _leaf(self, parent: Path, frames: list[FrameType]) -> Path:
        child = self._child(parent, frames)
        if not child.comparisons:
            child.learn(())
        return child

    def _child(self, parent: Path, frames: list[FrameType]) -> Path:
        """The child of these frames, created on first use.

        Different functions can have the same offsets. The first one is stored under the
        offsets alone, the others under offsets and code.
        """
        key = lastis = tuple([frame.f_lasti for frame in frames])
        codes = tuple([frame.f_code for frame in frames])
        child = parent.children.get(key)
        if child is not None and not all(map(operator.is_, child.codes, codes)):
            key = lastis + tuple(map(id, codes))
            child = parent.children.get(key)
        if child is None:
            if len(self._nodes) >= _MOST_NODES:
                self._reset()
            if parent.children is _NO_CHILDREN:
                parent.children = {}
            child = parent.children[key] = Path(parent, codes, lastis)
            self._nodes.append(child)
        return child

    def _new_root(self) -> Path:
        root = Path(None)
        root.wanted = self._user_frames
        return root

    def _reset(self) -> None:
        """Drop all paths except those that holds and statistics refer to."""
        old = [self._root, *self._nodes]
        self._nodes, self._tails, self._root = [], {}, self._new_root()
        for path in old:
            path.children = _NO_CHILDREN

    def _learn(self, path: Path, beyond: list[FrameType]) -> None:
        pairs = tuple(_pairs(beyond))
        # Tails repeat (the server, the framework): one copy of each is kept. The key
        # is by identity because hashing a code object reads all of its contents.
        key = tuple([part for code, lasti in pairs for part in (id(code), lasti)])
        path.learn(self._tails.setdefault(key, pairs) if pairs else ())


def _chain(frame: FrameType | None, most: int) -> Iterator[FrameType]:
    """``frame`` and its callers."""
    while frame is not None and most > 0:
        yield frame
        frame, most = frame.f_back, most - 1


def _pairs(frames: Iterable[FrameType]) -> list[tuple[CodeType, int]]:
    for frame in frames:
        if frame.f_code.co_filename == "<string>":
            note_fileless_function(
                frame.f_code.co_name, dict.get(frame.f_globals, "__name__")
            )
    return [(frame.f_code, frame.f_lasti) for frame in frames]


def _own_positions(pairs: Sequence[tuple[CodeType, int]]) -> list[int]:
    """The positions of the application's own frames."""
    return application_frames([(c.co_filename, c.co_name) for c, _ in pairs])


def _site_of(pairs: Sequence[tuple[CodeType, int]]) -> tuple[CodeType, int] | None:
    """The call site: the innermost frame of the application's own code.

    If the stack has no such frame, the innermost frame of all.
    """
    return pairs[next(iter(_own_positions(pairs)), 0)] if pairs else None


def _common(one: tuple[T, ...], other: tuple[T, ...]) -> tuple[T, ...]:
    """The common inner part of two stacks."""
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other))  # noqa: B905 - to the shorter end
    return tuple([own for own, _ in both])


def extended(
    near: tuple[Frame, ...], tail: tuple[Frame, ...], live: tuple[Frame, ...]
) -> tuple[Frame, ...]:
    """A resolved stack: its exact part and, as far as it is certain, the far end.

    ``tail`` has the frames that all compared holds on this path had in common. If the
    holder seems to be still in ``near``, the far end is taken from ``live``, its
    running stack; but that may be the stack of a later call. Where the two differ,
    only their common part is certain.
    """
    last = near[-1] if near else None
    places = [at for at, frame in enumerate(live) if frame is last]
    if len(places) != 1:
        return near + tail
    beyond = live[places[0] + 1 :]
    if beyond[: len(tail)] == tail:
        return near + beyond
    return near + _common(tail, beyond)


def resolve(pairs: Iterable[tuple[CodeType, int]]) -> tuple[Frame, ...]:
    """Resolve pairs to frames with file, line and function."""
    known, found = _frames, []
    for code, lasti in pairs:  # inlined: runs ten thousand times for a thousand holds
        entry = known.get((id(code), lasti))
        hit = entry is not None and entry[0] is code
        found.append(entry[1] if entry is not None and hit else _frame(code, lasti))
    return tuple(found)


def current_frames() -> dict[int, FrameType]:
    """The running frame of every thread."""
    return undisturbed(sys._current_frames)  # noqa: SLF001 - the documented way


def pairs_of(frame: FrameType | None, most: int = DEEPEST) -> Pairs:
    """The stack from ``frame`` outwards, without poolwatch's own frames."""
    pairs = []
    while frame is not None and most:
        code = frame.f_code
        if not is_ours(code.co_filename):
            pairs.append((code, frame.f_lasti))
        frame, most = frame.f_back, most - 1
    return tuple(pairs)


def _frame(code: CodeType, lasti: int) -> Frame:
    # by identity: hashing a code object reads all of its contents
    known = _frames.get((id(code), lasti))
    if known is not None and known[0] is code:
        return known[1]
    if len(_frames) >= _MOST_FRAMES:
        _frames.clear()
    frame = Frame(code.co_filename, _line(code, lasti), code.co_name)
    _frames[id(code), lasti] = code, frame
    return frame


_frames: dict[tuple[int, int], tuple[CodeType, Frame]] = {}
_MOST_FRAMES = 2048


def _line(code: CodeType, lasti: int) -> int:
    for start, end, line in code.co_lines():
        if start <= lasti < end and line is not None:
            return line
    return code.co_firstlineno
