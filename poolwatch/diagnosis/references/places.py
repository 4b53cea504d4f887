"""Roots and places: where a search starts, and the names it reports for them.

The places of a *root* are read anew in every step of a search and dropped at the end of
the step, because they refer to frames and values of the application. Between two steps
only weak references and numbers stay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Literal
from weakref import ref

from poolwatch.diagnosis.references.frames import local_variables
from poolwatch.diagnosis.wait_graph import Node, task_node, thread_node
from poolwatch.stacks.code_owner import CodeOwner, code_owner_of, is_ours

RootKind = Literal[
    "running frame", "suspended frame", "global", "context variable", "exception",
    "scheduled call", "unknown",
]  # fmt: skip

MAX_FRAMES = 1000
"""Most frames of one stack that are read, innermost first."""


@dataclass(frozen=True, slots=True)
class RootOwner:
    """The thread, or the task in it, that a root belongs to."""

    name: str
    thread: int | None
    task: ref[Any] | None = None

    @property
    def words(self) -> str:
        """What it is, with its name."""
        return f"{'thread' if self.task is None else 'task'} {self.name}"

    def node(self) -> Node:
        """The thread or task as a node of the wait graph."""
        task = self.task() if self.task is not None else None
        return thread_node(self.thread) if task is None else task_node(task)


NO_OWNER = RootOwner("", None)


class Place:
    """One frame, module or the like, with the objects it refers to."""

    __slots__ = (
        "code",
        "far",
        "first_words",
        "globals",
        "is_user",
        "kind",
        "lasti",
        "names",
        "owner",
        "resumes",
        "title",
        "unreadable",
        "values",
        "via_server",
        "via_suspended",
    )

    def __init__(
        self,
        kind: RootKind,
        owner: RootOwner,
        values: list[Any],
        names: Callable[[], Iterable[tuple[str, Any]]],
        *,
        is_user: bool,
        title: str = "",
        frame: FrameType | None = None,
    ) -> None:
        self.kind = kind
        self.owner = owner
        self.values = values
        self.names = names
        """Returns names with values; called only for a place on a path."""
        self.is_user = is_user
        self.title = title
        self.far = False
        """Whether ``values`` are many references away from the root."""
        self.via_server = False
        """Whether a server's object is between root and ``values``."""
        self.via_suspended = False
        """Whether a suspended generator or coroutine is between root and ``values``."""
        self.resumes = True
        """Whether the code of this place is running, or will be resumed."""
        self.unreadable = False
        """Whether the values could not be read."""
        self.first_words: dict[int, str] = {}
        """The first step of described chains, by the id of their first object."""
        self.code: CodeType | None = frame.f_code if frame is not None else None
        self.lasti = frame.f_lasti if frame is not None else 0
        self.globals: dict[str, Any] = frame.f_globals if frame is not None else {}

    def far_copy(self, *, via_suspended: bool, via_server: bool) -> Place:
        """The same place for objects that are far from the root."""
        other = Place(self.kind, self.owner, [], tuple, is_user=self.is_user)
        other.title, other.code, other.lasti = self.title, self.code, self.lasti
        other.far, other.via_suspended = True, via_suspended or self.via_suspended
        other.via_server = via_server or self.via_server
        other.resumes = self.resumes
        return other


@dataclass(slots=True)
class Root:
    """One starting point of a search: a thread, a module, a group of tasks."""

    what: Literal[
        "threads", "greenlets", "tasks", "event loops", "modules", "exceptions"
    ]
    title: str
    """Its name in words."""
    read: Callable[[], list[Place]]
    """The places as they are now, the innermost first."""
    count: int = 1
    resumes: bool = True
    """False for an event loop that no thread runs, and for its tasks."""

    @property
    def proves_use(self) -> bool:
        """Whether a path from this root can show that a connection is in use."""
        kinds = ("threads", "greenlets", "tasks", "event loops")
        return self.resumes and self.what in kinds


def runs_user_code(frame: FrameType) -> bool:
    """Whether a frame runs the user's code or that of a package (not plumbing)."""
    module = dict.get(frame.f_globals, "__name__")  # perhaps a dict subclass
    module = module if type(module) is str else None
    return code_owner_of(frame.f_code.co_filename, module) is not CodeOwner.PLUMBING


def stack_places(
    frame: FrameType | None, owner: RootOwner, kind: RootKind
) -> Iterator[Place]:
    """The locals of a stack, without poolwatch's own frames.

    The globals of a running module are left out where they are a local of its runner.
    """
    above: list[Any] = []
    modules: set[int] = set()
    """Ids of the globals of the frames above."""
    for _ in range(MAX_FRAMES):
        if frame is None:
            return
        names: list[Any] = []
        values: list[Any] = []
        if _being_traced(frame, above):
            yield unreadable_place(kind, owner)
        elif not is_ours(frame.f_code.co_filename):
            names, values = local_variables(frame)
            own = [value for value in values if id(value) not in modules]
            yield Place(
                kind,
                owner,
                own,
                pairs(names, values),
                is_user=runs_user_code(frame),
                frame=frame,
            )
        modules.add(id(frame.f_globals))
        above, frame = values, frame.f_back
    if frame is not None:
        yield unreadable_place(kind, owner)


def unreadable_place(kind: RootKind, owner: RootOwner) -> Place:
    """A place that could not be read."""
    place = unnamed_place(kind, owner, "", [])
    place.unreadable = True
    return place


def pairs(
    names: list[Any], values: list[Any]
) -> Callable[[], Iterable[tuple[str, Any]]]:
    """A function that pairs names with values, for ``Place.names``."""
    return lambda: zip(names, values, strict=False)


def _being_traced(frame: FrameType, above: list[Any]) -> bool:
    """Whether a trace or profile function is active on the frame."""
    if sys.version_info >= (3, 13):
        return False
    flat = [part for each in above if type(each) is tuple for part in each[:8]]
    return any(each is frame for each in (*above, *flat))


def unnamed_place(
    kind: RootKind, owner: RootOwner, title: str, values: list[Any]
) -> Place:
    """A place other than a frame, whose values have no names."""
    return Place(kind, owner, values, tuple, is_user=False, title=title)
