"""Captures stacks cheaply: a few pointers at the checkout, names and lines later.

A stack is stored as (code object, ``f_lasti``) pairs. Storing frames would keep their
locals alive, and with them the connection that leaks. Lines and names are resolved when
a snapshot is taken.

Walking thirty frames at every checkout would cost more than the checkout. But most
stacks repeat, so captured stacks form a tree of chunks of eight frames, the nearest
first, and a hold only refers to a node. A walk stops at the first chunk with enough
frames of user code. The frames beyond it (the *tail*) are stored when the stack is
first captured. The next few captures compare the tail with their own, later ones ever
more rarely, and the tail is cut to the frames that all of them share. So the call site
and its nearest callers are always exact, and the tail is what every comparison
confirmed. If the holder still runs that code, a snapshot adds the rest from its current
stack (see ``extended``).

Two walks are needed. Under asyncio SQLAlchemy runs in a greenlet, whose stack ends in
SQLAlchemy; the user's ``await`` chain is on the stack of the parent greenlet.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

from poolwatch.model import Frame
from poolwatch.runtime.gc_pause import undisturbed
from poolwatch.runtime.made_once import made_once
from poolwatch.stacks.code_owner import (
    application_frames,
    is_ours,
    note_fileless_function,
)
from poolwatch.stacks.outer_frames import common, extended
from poolwatch.stacks.work_items import (
    Submitter,
    across_threads,
    no_submitter,
    work_item_at,
)

Pairs = tuple[tuple[CodeType, int], ...]
"""A stack: the code object and ``f_lasti`` of each frame, innermost first."""

CHUNK = 8
"""Frames per node. ``CallSites.capture`` is unrolled for this number."""
MAX_FRAMES = 64
"""Maximum number of frames of a stack."""
USER_FRAMES_WANTED = 4
"""Number of nearest frames of user code that are exact in every stack."""
_COMPARISONS = 4
"""Number of captures that compare a tail before it is trusted."""
_MAX_MISSES = 4
"""Consecutive captures without a submitter after which none is looked for."""
_MAX_NODES = 512
"""Maximum number of nodes, after which the tree is reset."""


_NO_CHILDREN: dict[tuple[int, ...], CapturedStack] = {}
"""The children of a leaf. Never written to."""


class CapturedStack:
    """A node of the tree: one chunk of frames; its parents have the nearer ones."""

    __slots__ = (
        "_frames",
        "_last_frames",
        "_site_at",
        "_tail",
        "children",
        "codes",
        "comparisons",
        "depth",
        "end",
        "is_submitted",
        "is_trusted",
        "lastis",
        "misses",
        "must_go_on",
        "parent",
        "user_frames_wanted",
    )

    def __init__(
        self,
        parent: CapturedStack | None,
        codes: tuple[CodeType, ...] = (),
        lastis: tuple[int, ...] = (),
    ) -> None:
        self.parent = parent
        self.codes = codes
        self.lastis = lastis
        self.children = _NO_CHILDREN
        self.is_trusted = False
        """The walk ends here, and the tail is not compared."""
        self.is_submitted = False
        """A worker thread's stack, without user code."""
        self.misses = 0
        """Number of consecutive captures without a submitter."""
        self.must_go_on = False
        """The walk must go on: there are too few frames of user code so far."""
        self.end = 0
        """Number of frames in this chunk up to an end code (see CallSites); else 0."""
        self.comparisons = 0
        """Number of captures that compared the tail."""
        self._tail: Pairs = ()
        self._site_at: tuple[CodeType, int] | None = None
        self._frames: tuple[tuple[Frame, ...], tuple[Frame, ...]] | None = None
        self._last_frames: tuple[Frame, ...] = ()
        self.depth = len(codes)
        self.user_frames_wanted = USER_FRAMES_WANTED
        """Number of frames of user code that are enough."""
        if parent is not None:
            self.depth += parent.depth
            self.user_frames_wanted = parent.user_frames_wanted

    def frames(self, live: tuple[Frame, ...] = ()) -> tuple[Frame, ...]:
        """The resolved stack, innermost first. ``live``: the holder's current stack."""
        if self._frames is None:
            self._frames = resolve(self.near()), resolve(self._tail)
        frames, last = extended(*self._frames, live), self._last_frames
        if frames == last:  # a snapshot shares the objects of equal stacks
            return last
        self._last_frames = frames
        return frames

    def site(self) -> Frame | None:
        """The call site: the nearest frame of user code."""
        if self._site_at is None:
            self._site_at = _site_of(self.near() + self._tail)
        return None if self._site_at is None else _frame(*self._site_at)

    def recheck_tail(self) -> None:
        """Have the next capture of this stack compare the tail."""
        self.is_trusted = False

    def check_depth(self, user_frames: Sequence[int], *, beyond: bool) -> bool:
        """Whether the walk must go on from here; sets ``must_go_on``.

        ``user_frames`` are the indexes of the frames of user code in the whole stack.
        """
        if beyond and self.depth < MAX_FRAMES:
            near = sum(at < self.depth for at in user_frames)
            self.must_go_on = self.must_go_on or near < self.user_frames_wanted
        return self.must_go_on

    def record_tail(self, tail: Pairs) -> None:
        """Store or compare the tail, where the walk ends; sets ``is_trusted``."""
        self.comparisons += 1
        if self.comparisons == 1:
            self._tail, pairs = tail, self.near() + tail
            self._site_at = _site_of(pairs)  # later tails may be shorter
            self.is_submitted = bool(work_item_at(pairs)) and not _user_frames_in(pairs)
        elif tail != self._tail:
            self._tail, self._frames = common(tail, self._tail), None
        if self.comparisons >= _COMPARISONS:
            self.is_trusted = True

    def exact(self) -> tuple[Frame, ...]:
        """The exact part of the stack, resolved."""
        return resolve(self.near())

    def pairs(self) -> Pairs:
        """The known part of the stack: the exact part and the tail."""
        return self.near() + self._tail

    def near(self) -> Pairs:
        """The exact part of the stack."""
        near = tuple(zip(self.codes, self.lastis, strict=True))
        near = near[: self.end] if self.end else near
        return (self.parent.near() if self.parent else ()) + near


_NO_CHILD = CapturedStack(None, (compile("", "", "exec"),) * CHUNK)
"""Placeholder for a missing child: its code is never on a stack."""


UNKNOWN_STACK = CapturedStack(None)
"""The stack of a checkout that was not seen."""


class CallSites:
    """The tree of all captured stacks, bounded in size."""

    def __init__(
        self,
        user_frames: int = USER_FRAMES_WANTED,
        end_codes: Mapping[int, CodeType] | None = None,
        submitter: Submitter = no_submitter,
    ) -> None:
        """Create a tree.

        ``user_frames`` is the number of nearest frames of user code that are exact.
        ``end_codes`` are the code objects, by id, at which a walk ends. With the stack
        that ``submitter`` returns, a stack without user code is continued.
        """
        self.submitter = submitter
        self._user_frames = user_frames
        self._root = self._new_root()
        self._tails: dict[tuple[int, ...], Pairs] = {}
        self._nodes: list[CapturedStack] = []
        self._end_codes: Mapping[int, CodeType] = {} if end_codes is None else end_codes

    @made_once
    def of_statements(self) -> CallSites:
        """A separate tree for the stacks of statements.

        They are many, and one frame of user code is enough for each: the stack of the
        checkout shows the others.
        """
        return CallSites(1, self._end_codes, self.submitter)

    def capture(self, frame: FrameType | None) -> CapturedStack:
        """Capture the stack that begins at ``frame``.

        Unrolled to eight frames per step: a plain loop costs twice as much on 3.11.
        """
        node, start = self._root, frame
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
                node = self._leaf(node, list(_callers(near, CHUNK)))
                return self._continued(node, start) if node.is_submitted else node
            child = node.children.get((l0, l1, l2, l3, l4, l5, l6, l7), _NO_CHILD)
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
                ids = id(c0), id(c1), id(c2), id(c3), id(c4), id(c5), id(c6), id(c7)
                key = (l0, l1, l2, l3, l4, l5, l6, l7, *ids)
                child = node.children.get(key, _NO_CHILD)
                if child is _NO_CHILD:
                    node = self._extend_tree(node, near)
                    return self._continued(node, start) if node.is_submitted else node
            node = child
            if node.is_trusted:
                return node
            if not node.must_go_on:
                beyond = (
                    [] if node.end else self._rest(frame, MAX_FRAMES - node.depth)[0]
                )
                user_frames = _user_frames_in([*node.near(), *_pairs(beyond)])
                if not node.check_depth(user_frames, beyond=bool(beyond)):
                    self._record_tail(node, beyond)
                    return node

    def capture_across_greenlets(
        self, frame: FrameType | None, current: Any
    ) -> CapturedStack:
        """Like capture, continued with the frames of the parent greenlets."""
        frames = list(_callers(frame, MAX_FRAMES))
        parent = current.parent
        while parent is not None and len(frames) < MAX_FRAMES:
            frames += _callers(parent.gr_frame, MAX_FRAMES - len(frames))
            parent = parent.parent
        return self._leaf(self._root, frames)

    def capture_frames(self, frames: list[FrameType]) -> CapturedStack:
        """Capture a stack that is not the running one, innermost frame first."""
        return self._leaf(self._root, frames[:MAX_FRAMES])

    def _extend_tree(
        self, node: CapturedStack, frame: FrameType | None
    ) -> CapturedStack:
        """Continue a walk beyond the tree, and add the missing nodes."""
        frames, end = self._rest(frame, MAX_FRAMES - node.depth)
        pairs, at = [*node.near(), *_pairs(frames)], 0
        user_frames: list[int] | None = None
        while not node.end:
            chunk = frames[at : at + CHUNK]
            if len(chunk) < CHUNK:
                return self._leaf(node, chunk)
            node = self._child(node, chunk)
            at += CHUNK
            if end and at >= end:
                node.end, node.is_trusted = end - at + CHUNK, True
            if node.is_trusted:
                break
            rest = frames[at:]
            if node.must_go_on:
                continue
            if user_frames is None:
                user_frames = _user_frames_in(pairs)
            if not node.check_depth(user_frames, beyond=bool(rest)):
                self._record_tail(node, rest)
                break
        return node

    def _rest(self, frame: FrameType | None, most: int) -> tuple[list[FrameType], int]:
        """Return the rest of a stack, and the number of its frames up to an end code.

        The number is 0 if there is no end code. Otherwise the rest ends with the chunk
        of the end code.
        """
        frames: list[FrameType] = []
        end_codes, end = self._end_codes, 0
        while frame is not None and len(frames) < most:
            frames.append(frame)
            if id(frame.f_code) in end_codes and not end:
                end = len(frames)
                most = min(most, -(-end // CHUNK) * CHUNK)
            frame = frame.f_back
        return frames, end

    def _continued(self, node: CapturedStack, frame: FrameType | None) -> CapturedStack:
        beyond = self.submitter(frame, True)[1]
        node.misses = 0 if beyond else node.misses + 1
        node.is_submitted = node.misses < _MAX_MISSES  # plain executors have none
        whole = across_threads(node.pairs(), beyond)[:MAX_FRAMES] if beyond else []
        return self._leaf(self._root, whole) if whole else node

    def _leaf(self, parent: CapturedStack, frames: list[Any]) -> CapturedStack:
        child = self._child(parent, frames)
        if not child.comparisons:
            child.record_tail(())
        return child

    def _child(self, parent: CapturedStack, frames: list[Any]) -> CapturedStack:
        """Return the child with these frames, created if needed.

        Functions that look alike have the same offsets. The first one is stored under
        the offsets, further ones under the offsets and the ids of their code.
        """
        key = lastis = tuple([frame.f_lasti for frame in frames])
        codes = tuple([frame.f_code for frame in frames])
        child = parent.children.get(key)
        if child is not None and not all(map(operator.is_, child.codes, codes)):
            key = lastis + tuple(map(id, codes))
            child = parent.children.get(key)
        if child is None:
            if len(self._nodes) >= _MAX_NODES:
                self._reset()
            if parent.children is _NO_CHILDREN:
                parent.children = {}
            child = parent.children[key] = CapturedStack(parent, codes, lastis)
            self._nodes.append(child)
        return child

    def _new_root(self) -> CapturedStack:
        root = CapturedStack(None)
        root.user_frames_wanted = self._user_frames
        return root

    def _reset(self) -> None:
        """Forget all stacks. Those that holds and statistics refer to stay alive."""
        old = [self._root, *self._nodes]
        self._nodes, self._tails, self._root = [], {}, self._new_root()
        for node in old:
            node.children = _NO_CHILDREN

    def _record_tail(self, node: CapturedStack, beyond: list[FrameType]) -> None:
        pairs = tuple(_pairs(beyond))
        # one copy of each; by identity: hashing a code object reads all of its contents
        key = tuple([part for code, lasti in pairs for part in (id(code), lasti)])
        node.record_tail(self._tails.setdefault(key, pairs) if pairs else ())


def _callers(frame: FrameType | None, most: int) -> Iterator[FrameType]:
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


def _user_frames_in(pairs: Sequence[tuple[CodeType, int]]) -> list[int]:
    """The indexes of the frames of user code."""
    return application_frames([(c.co_filename, c.co_name) for c, _ in pairs])


def _site_of(pairs: Sequence[tuple[CodeType, int]]) -> tuple[CodeType, int] | None:
    """The call site: the nearest frame of user code, or the innermost frame."""
    return pairs[next(iter(_user_frames_in(pairs)), 0)] if pairs else None


def resolve(pairs: Iterable[tuple[CodeType, int]]) -> tuple[Frame, ...]:
    """Resolve pairs to frames with file, line and function."""
    known, found = _frames, []
    for code, lasti in pairs:  # inlined: runs 10,000 times for 1,000 holds
        entry = known.get((id(code), lasti))
        hit = entry is not None and entry[0] is code
        found.append(entry[1] if entry is not None and hit else _frame(code, lasti))
    return tuple(found)


def current_frames() -> dict[int, FrameType]:
    """The running frame of every thread."""
    return undisturbed(sys._current_frames)  # noqa: SLF001 - the documented way


def pairs_of(frame: FrameType | None, most: int = MAX_FRAMES) -> Pairs:
    """The current stack from ``frame`` on, without the frames of poolwatch."""
    pairs = []
    while frame is not None and most:
        code = frame.f_code
        if not is_ours(code.co_filename):
            pairs.append((code, frame.f_lasti))
        frame, most = frame.f_back, most - 1
    return tuple(pairs)


def _frame(code: CodeType, lasti: int) -> Frame:
    known = _frames.get((id(code), lasti))
    if known is not None and known[0] is code:
        return known[1]
    if len(_frames) >= _MAX_CACHED_FRAMES:
        _frames.clear()
    frame = Frame(code.co_filename, _line(code, lasti), code.co_name)
    _frames[id(code), lasti] = code, frame
    return frame


_frames: dict[tuple[int, int], tuple[CodeType, Frame]] = {}
_MAX_CACHED_FRAMES = 2048


def _line(code: CodeType, lasti: int) -> int:
    for start, end, line in code.co_lines():
        if start <= lasti < end and line is not None:
            return line
    return code.co_firstlineno
