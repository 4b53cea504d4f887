"""Stacks at the price of a few pointers: capture now, words later.

A stack is kept as (code object, ``f_lasti``) pairs, never as frames: a frame keeps its
locals alive, and with them the very connection that leaks. Lines and names are looked
up when somebody wants to read them.

Walking thirty frames at every checkout would cost more than the checkout. Equal stacks
are the rule, though, so captured stacks live in a tree of chunks of eight frames, the
nearest first, and a hold only points to a node. A walk stops at the first chunk that
has seen enough of the user's code. What lies beyond (the *tail*) is kept from the first
time this path was met, compared with the next few and then ever more rarely, and cut
back to what all of them had in common. So the call site and its nearest callers are
always exact; the far end is what every look so far has confirmed, and a viewer adds the
rest from the running stack where the holder is still in it (see ``extended``).

Two walks are needed. Under asyncio SQLAlchemy runs in a greenlet, whose frames end in
SQLAlchemy; the user's ``await`` chain hangs on the parent greenlet.
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
from poolwatch.stacks.code_owner import application_frames, is_ours, note_typed

T = TypeVar("T")
Pairs = tuple[tuple[CodeType, int], ...]

CHUNK = 8
"""Frames in one step of the walk; the fast walk below is written out for it."""
DEEPEST = 64
"""Frames of a stack that are kept at most."""
USER_FRAMES_WANTED = 4
"""The user's nearest frames, or all there are, that are exact in every path."""
_LOOKS = 4
"""Times a tail is compared before it is trusted for a while."""
_MOST_NODES = 512
"""Distinct paths remembered, before the tree starts anew."""


_NONE_YET: dict[tuple[int, ...], Path] = {}
"""The children of most paths. Never written to."""


class Path:
    """One chunk of a stack, and through its parents the whole of it."""

    __slots__ = (
        "_frames",
        "_site_at",
        "_tail",
        "_told",
        "bottom",
        "children",
        "codes",
        "deeper",
        "depth",
        "fast",
        "lastis",
        "looks",
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
        self.children = _NONE_YET
        self.fast = False
        """The walk may stop here without a further look."""
        self.deeper = False
        """The walk must go on: too little of the user's code so far."""
        self.bottom = 0
        """Frames of this chunk at which the walk ends, whatever lies beyond; else 0."""
        self.looks = 0
        self._tail: Pairs = ()
        self._site_at: tuple[CodeType, int] | None = None
        self._frames: tuple[tuple[Frame, ...], tuple[Frame, ...]] | None = None
        self._told: tuple[Frame, ...] = ()
        self.depth = len(codes)
        self.wanted = USER_FRAMES_WANTED
        """Frames of the application's own that are enough."""
        if parent is not None:
            self.depth += parent.depth
            self.wanted = parent.wanted

    def frames(self, live: tuple[Frame, ...] = ()) -> tuple[Frame, ...]:
        """The stack in words, innermost first; ``live`` is where its holder is now."""
        if self._frames is None:
            self._frames = resolve(self.near()), resolve(self._tail)
        frames, told = extended(*self._frames, live), self._told
        if frames == told:  # equal stacks are one object in a snapshot
            return told
        self._told = frames
        return frames

    def site(self) -> Frame | None:
        """The call site: the nearest frame of the application's own."""
        if self._site_at is None:
            self._site_at = _site_of(self.near() + self._tail)
        return None if self._site_at is None else _frame(*self._site_at)

    def recheck_tail(self) -> None:
        """Compare the tail at the next hold on this path."""
        self.fast = False

    def goes_on(self, mine: Sequence[int], *, beyond: bool) -> bool:
        """Whether the walk must go on from here: decides ``deeper``.

        ``mine`` are the positions of the application's own frames in the whole stack.
        """
        if beyond and self.depth < DEEPEST:
            near = sum(at < self.depth for at in mine)
            self.deeper = self.deeper or near < self.wanted
        return self.deeper

    def learn(self, tail: Pairs) -> None:
        """Take in what lies beyond, where the walk ends: decides ``fast``."""
        self.looks += 1
        if self.looks == 1:
            self._tail = tail
            self._site_at = _site_of(self.near() + tail)  # later tails may be shorter
        elif tail != self._tail:
            self._tail, self._frames = _common(tail, self._tail), None
        if self.looks >= _LOOKS:
            self.fast = True

    def exact(self) -> tuple[Frame, ...]:
        """What was walked of the stack, in words."""
        return resolve(self.near())

    def pairs(self) -> Pairs:
        """The stack, as far as it is known."""
        return self.near() + self._tail

    def near(self) -> Pairs:
        """What was walked of the stack."""
        near = tuple(zip(self.codes, self.lastis, strict=True))
        near = near[: self.bottom] if self.bottom else near
        return (self.parent.near() if self.parent else ()) + near


_NOBODY = Path(None, (compile("", "", "exec"),) * CHUNK)
"""Stands for a child that is not there: its code runs nowhere."""


class CallSites:
    """The tree of all paths seen, bounded."""

    def __init__(
        self,
        user_frames: int = USER_FRAMES_WANTED,
        bottoms: Mapping[int, CodeType] | None = None,
    ) -> None:
        """Keep exact at least so many of the user's nearest frames, and let no walk go
        beyond the code in ``bottoms``, by id.
        """
        self._user_frames = user_frames
        self._root = self._new_root()
        self._tails: dict[tuple[int, ...], Pairs] = {}
        self._nodes: list[Path] = []
        self._bottoms: Mapping[int, CodeType] = {} if bottoms is None else bottoms

    @cached_property
    def of_statements(self) -> CallSites:
        """A tree of its own for the places of statements: they are many, and one frame
        of the user's is enough of each, since the checkout has told the others.
        """
        return CallSites(user_frames=1, bottoms=self._bottoms)

    def capture(self, frame: FrameType | None) -> Path:
        """Return the path of a stack that begins at ``frame``.

        Written out eight frames a step: the loop a reader would expect costs twice as
        much on CPython 3.11, and this runs at every checkout.
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
            child = path.children.get((l0, l1, l2, l3, l4, l5, l6, l7), _NOBODY)
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
                mine = _own([*path.near(), *_pairs(beyond)])
                if not path.goes_on(mine, beyond=bool(beyond)):
                    self._learn(path, beyond)
                    return path

    def capture_across_greenlets(self, frame: FrameType | None, current: Any) -> Path:
        """Like capture, going on with the frames of the parent greenlets."""
        frames = list(_chain(frame, DEEPEST))
        parent = current.parent
        while parent is not None and len(frames) < DEEPEST:
            frames += _chain(parent.gr_frame, DEEPEST - len(frames))
            parent = parent.parent
        return self._leaf(self._root, frames)

    def _descend(self, path: Path, frame: FrameType | None) -> Path:
        """Go on where the tree does not, with one look at every frame there is."""
        frames, bottom = self._rest(frame, DEEPEST - path.depth)
        pairs, at = [*path.near(), *_pairs(frames)], 0
        mine: list[int] | None = None
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
            if mine is None:
                mine = _own(pairs)
            if not path.goes_on(mine, beyond=bool(rest)):
                self._learn(path, rest)
                break
        return path

    def _rest(self, frame: FrameType | None, most: int) -> tuple[list[FrameType], int]:
        """The rest of a stack, and how many of its frames lead to a bottom; 0 if none
        does. Beyond that it ends with the next whole chunk.
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
        if not child.looks:
            child.learn(())
        return child

    def _child(self, parent: Path, frames: list[FrameType]) -> Path:
        """The child of these frames, made if there is none yet.

        Functions of the same shape have the same offsets: the first one met stands
        under the offsets alone, its twins under offsets and code.
        """
        key = lastis = tuple([frame.f_lasti for frame in frames])
        codes = tuple([frame.f_code for frame in frames])
        child = parent.children.get(key)
        if child is not None and not all(map(operator.is_, child.codes, codes)):
            key = lastis + tuple(map(id, codes))
            child = parent.children.get(key)
        if child is None:
            if len(self._nodes) >= _MOST_NODES:
                self._begin_anew()
            if parent.children is _NONE_YET:
                parent.children = {}
            child = parent.children[key] = Path(parent, codes, lastis)
            self._nodes.append(child)
        return child

    def _new_root(self) -> Path:
        root = Path(None)
        root.wanted = self._user_frames
        return root

    def _begin_anew(self) -> None:
        """Let go of all paths but those that holds and tallies point to."""
        old = [self._root, *self._nodes]
        self._nodes, self._tails, self._root = [], {}, self._new_root()
        for path in old:
            path.children = _NONE_YET

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
            note_typed(frame.f_code.co_name, dict.get(frame.f_globals, "__name__"))
    return [(frame.f_code, frame.f_lasti) for frame in frames]


def _own(pairs: Sequence[tuple[CodeType, int]]) -> list[int]:
    """Where the application's own frames are."""
    return application_frames([(c.co_filename, c.co_name) for c, _ in pairs])


def _site_of(pairs: Sequence[tuple[CodeType, int]]) -> tuple[CodeType, int] | None:
    """The call site: the nearest frame of the application's own.

    Or the innermost one of all, where nothing on the stack is the application's.
    """
    return pairs[next(iter(_own(pairs)), 0)] if pairs else None


def _common(one: tuple[T, ...], other: tuple[T, ...]) -> tuple[T, ...]:
    """What two stacks have in common, from the near end."""
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other))  # noqa: B905 - to the shorter end
    return tuple([mine for mine, _ in both])


def extended(
    near: tuple[Frame, ...], tail: tuple[Frame, ...], live: tuple[Frame, ...]
) -> tuple[Frame, ...]:
    """A stack in words: its exact part and, as far as it is certain, the far end.

    ``tail`` is what holds on this path had in common whenever it was compared. If the
    holder seems to be in ``near`` still, ``live`` (its running stack) goes on from
    there; but a running stack may be that of a later call. Where the two disagree it
    cannot be told which is right, so what they share is all that is said.
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
    """Put pairs into words."""
    known, found = _frames, []
    for code, lasti in pairs:  # written out: ten thousand times for a thousand holds
        entry = known.get((id(code), lasti))
        hit = entry is not None and entry[0] is code
        found.append(entry[1] if entry is not None and hit else _frame(code, lasti))
    return tuple(found)


def current_frames() -> dict[int, FrameType]:
    """The running frame of every thread."""
    return undisturbed(sys._current_frames)  # noqa: SLF001 - the documented way


def pairs_of(frame: FrameType | None, most: int = DEEPEST) -> Pairs:
    """The stack that begins at ``frame`` now, innermost first, without our frames."""
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
