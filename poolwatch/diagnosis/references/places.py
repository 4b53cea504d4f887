"""Roots and their places: what a search reads, and how it names it.

A *root* is read anew in every step of a search and let go at its end: it holds frames
and values of the application. Between two steps only weak references and numbers stay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Literal
from weakref import ref

from poolwatch.diagnosis.references.follow import local_variables
from poolwatch.stacks.code_owner import Owner, is_ours, owner_of

RootKind = Literal[
    "running frame", "suspended frame", "global", "context variable", "exception",
    "scheduled call", "unknown",
]  # fmt: skip

DEEPEST = 1000
"""Frames of one stack that are read, the innermost first."""


@dataclass(frozen=True, slots=True)
class Who:
    """The thread, or the task in it, that a root belongs to."""

    name: str
    thread: int | None
    task: ref[Any] | None = None


UNOWNED = Who("", None)


class Place:
    """One frame, module or the like, with the objects it refers to."""

    __slots__ = (
        "begun",
        "code",
        "far",
        "is_user",
        "kind",
        "lasti",
        "names",
        "parked",
        "title",
        "unread",
        "values",
        "who",
    )

    def __init__(
        self,
        kind: RootKind,
        who: Who,
        values: list[Any],
        names: Callable[[], Iterable[tuple[str, Any]]],
        *,
        is_user: bool,
        title: str = "",
        frame: FrameType | None = None,
    ) -> None:
        self.kind = kind
        self.who = who
        self.values = values
        self.names = names
        """Gives names with values; called only for a place on a path."""
        self.is_user = is_user
        self.title = title
        self.far = False
        """``values`` are many references away from the root."""
        self.parked = False
        """A suspended generator may be between the root and ``values``."""
        self.unread = False
        """The values could not be read."""
        self.begun: dict[int, str] = {}
        """The first words of described chains, by the id of their first object."""
        self.code: CodeType | None = frame.f_code if frame is not None else None
        self.lasti = frame.f_lasti if frame is not None else 0

    def beyond(self, *, parked: bool) -> Place:
        """The same place for objects that are far from the root."""
        other = Place(self.kind, self.who, [], tuple, is_user=self.is_user)
        other.title, other.code, other.lasti = self.title, self.code, self.lasti
        other.far, other.parked = True, parked or self.parked
        return other


@dataclass(slots=True)
class Root:
    """A place where a search begins."""

    what: Literal[
        "threads", "greenlets", "tasks", "event loops", "modules", "exceptions"
    ]
    title: str
    """Its name in words."""
    read: Callable[[], list[Place]]
    """The places as they are now, the innermost first."""
    count: int = 1

    @property
    def proves(self) -> bool:
        """Whether a connection that it reaches can be in use, not only be stored."""
        return self.what in ("threads", "greenlets", "tasks", "event loops")


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs the user's code, or a package that is not plumbing."""
    module = dict.get(frame.f_globals, "__name__")  # it may be of a derived class
    module = module if type(module) is str else None
    return owner_of(frame.f_code.co_filename, module) is not Owner.PLUMBING


def stack_places(frame: FrameType | None, who: Who, kind: RootKind) -> Iterator[Place]:
    """The locals of a stack, without poolwatch's own frames.

    The globals of a module that is being run do not count as locals of its runner.
    """
    above: list[Any] = []
    modules: set[int] = set()
    """Ids of the globals of the frames above."""
    for _ in range(DEEPEST):
        if frame is None:
            return
        names: list[Any] = []
        values: list[Any] = []
        if _being_traced(frame, above):
            yield unread(kind, who)
        elif not is_ours(frame.f_code.co_filename):
            names, values = local_variables(frame)
            own = [value for value in values if id(value) not in modules]
            yield Place(
                kind,
                who,
                own,
                pairs(names, values),
                is_user=is_users(frame),
                frame=frame,
            )
        modules.add(id(frame.f_globals))
        above, frame = values, frame.f_back
    if frame is not None:
        yield unread(kind, who)


def unread(kind: RootKind, who: Who) -> Place:
    """A place that could not be read."""
    place = single(kind, who, "", [])
    place.unread = True
    return place


def pairs(
    names: list[Any], values: list[Any]
) -> Callable[[], Iterable[tuple[str, Any]]]:
    """Names with values, for later."""
    return lambda: zip(names, values, strict=False)


def _being_traced(frame: FrameType, above: list[Any]) -> bool:
    """Whether a trace or profile function is at work on the frame."""
    if sys.version_info >= (3, 13):
        return False
    flat = [part for each in above if type(each) is tuple for part in each[:8]]
    return any(each is frame for each in (*above, *flat))


def single(kind: RootKind, who: Who, title: str, values: list[Any]) -> Place:
    """A place other than a frame, whose values have no names."""
    return Place(kind, who, values, tuple, is_user=False, title=title)
