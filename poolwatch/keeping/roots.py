"""Where references begin: running frames, tasks, modules, stored exceptions.

A *root* is read anew in every step of a search and let go at its end: it holds frames
and values of the application. Between two steps only weak references and numbers are
kept.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, ModuleType
from typing import Any, Literal
from weakref import ref

from poolwatch import greenlets
from poolwatch.callsites import current_frames
from poolwatch.collector import undisturbed
from poolwatch.holders import per_greenlet
from poolwatch.keeping.references import Guide, local_variables
from poolwatch.ownership import (
    Owner,
    file_of,
    is_ours,
    is_the_applications,
    owner_of,
)

RootKind = Literal[
    "running frame", "suspended frame", "global", "context variable", "exception",
    "scheduled call", "unknown",
]  # fmt: skip

_IMPORTED = frozenset({"__loader__", "__spec__", "__builtins__"})
"""What a module has from being imported. pytest's loader leads to all of a run."""
DEEPEST = 1000
"""Frames of one stack that are read, the innermost first."""


@dataclass(frozen=True, slots=True)
class Who:
    """The thread, or the task in it, that a root belongs to."""

    name: str
    thread: int | None
    task: ref[Any] | None = None


NOBODY = Who("", None)


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
        """Gives names with values, for the one place that is told of."""
        self.is_user = is_user
        self.title = title
        self.far = False
        """What it refers to here was reached from it over many others; ..."""
        self.parked = False
        """... a suspended generator may be among them."""
        self.unread = False
        """What it refers to could not be read."""
        self.begun: dict[int, str] = {}
        """How chains begin that were told already, by the object they begin with."""
        self.code: CodeType | None = frame.f_code if frame is not None else None
        self.lasti = frame.f_lasti if frame is not None else 0

    def beyond(self, *, parked: bool) -> Place:
        """The same place for what lies far behind it."""
        other = Place(self.kind, self.who, [], tuple, is_user=self.is_user)
        other.title, other.code, other.lasti = self.title, self.code, self.lasti
        other.far, other.parked = True, parked or self.parked
        return other


@dataclass(slots=True)
class Root:
    """Something to begin a search at."""

    what: Literal[
        "threads", "greenlets", "tasks", "event loops", "modules", "exceptions"
    ]
    title: str
    """What it is called."""
    read: Callable[[], list[Place]]
    """The places as they are now, the innermost first."""
    count: int = 1

    @property
    def proves(self) -> bool:
        """Whether what is reached from it can be in use, rather than only kept."""
        return self.what in ("threads", "greenlets", "tasks", "event loops")


def is_users(frame: FrameType) -> bool:
    """Whether it runs code of the user's own, or of a package that is not plumbing."""
    module = dict.get(frame.f_globals, "__name__")  # it may be of a derived class
    module = module if type(module) is str else None
    return owner_of(frame.f_code.co_filename, module) is not Owner.PLUMBING


def thread_roots(guide: Guide, first: Iterable[int | None]) -> list[Root]:
    """All threads, those of ``first`` at the beginning."""
    named = _thread_names() | per_greenlet.names_of_running()
    early = set(first)
    idents = sorted(current_frames(), key=lambda each: each not in early)
    names = [named.get(ident, str(ident)) for ident in idents]
    return [
        Root("threads", name, _thread_reader(guide, ident, name))
        for ident, name in zip(idents, names, strict=True)
    ]


def _thread_names() -> dict[int | None, str]:
    """The names of threads; a class derived from Thread may have ideas of its own."""
    attributes = [object.__getattribute__(t, "__dict__") for t in threading.enumerate()]
    return {each.get("_ident"): str(each.get("_name")) for each in attributes}


_TOGETHER = 16
"""Greenlets of one root: a server may have thousands."""


def greenlet_roots(guide: Guide, first: Iterable[int | None]) -> list[Root]:
    """All greenlets that do not run, those with an ``id()`` in ``first`` one by one.

    Only where a library schedules them; SQLAlchemy's own are found with their tasks.
    """
    if guide.greenlet is None or not greenlets.are_scheduled():
        return []
    found = greenlets.every_greenlet()
    if found is None:
        return [Root("greenlets", "", lambda: [unread("suspended frame", NOBODY)])]
    early = set(first)
    holding = [(each,) for each in found if id(each()) in early]
    others = [each for each in found if id(each()) not in early]
    groups = [
        tuple(others[at : at + _TOGETHER]) for at in range(0, len(others), _TOGETHER)
    ]
    return [
        Root("greenlets", "", _greenlet_reader(group), len(group))
        for group in (*holding, *groups)
    ]


def _greenlet_reader(group: tuple[ref[Any], ...]) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        places: list[Place] = []
        for weakly in group:
            greenlet = weakly()
            if greenlet is not None:
                places += _places_of_greenlet(greenlet)
        return places

    return read


def _places_of_greenlet(greenlet: Any) -> list[Place]:
    calls = greenlets.calls_of_hub(greenlet)
    if calls is not None:
        title = "a call that eventlet will make"
        return [single("scheduled call", NOBODY, title, calls)]
    who = Who(per_greenlet.name_of(greenlet), id(greenlet))
    frame = greenlets.suspended_frame(greenlet)
    if frame is not None:
        return list(stack_places(frame, who, "suspended frame"))
    if not greenlets.is_to_start(greenlet):
        return []
    title = f"the arguments of {who.name}, which is yet to start"
    return [single("scheduled call", who, title, gc.get_referents(greenlet))]


def exception_roots() -> list[Root]:
    """What threads are in an ``except`` clause for, and what an interpreter keeps."""
    names = _thread_names()
    return [Root("exceptions", "", lambda: _handled_exceptions(names))]


def _thread_reader(guide: Guide, ident: int, name: str) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        # No variable here: in this thread that frame would be the one it stands in.
        places = list(
            stack_places(_innermost(ident), Who(name, ident), "running frame")
        )
        return _with_tasks(guide, places, ident)

    return read


def _innermost(ident: int) -> FrameType | None:
    return current_frames().get(ident)


def stack_places(frame: FrameType | None, who: Who, kind: RootKind) -> Iterator[Place]:
    """The locals of a stack. poolwatch's own frames are not read: it looks, no more.

    The globals of a module that is run are no variable of the code that runs it.
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
    """A place of which nothing is known."""
    place = single(kind, who, "", [])
    place.unread = True
    return place


def pairs(
    names: list[Any], values: list[Any]
) -> Callable[[], Iterable[tuple[str, Any]]]:
    """Names with values, for when they are asked for."""
    return lambda: zip(names, values, strict=False)


def _being_traced(frame: FrameType, above: list[Any]) -> bool:
    """Whether what runs above it is a trace or profile function that was given it."""
    if sys.version_info >= (3, 13):
        return False
    flat = [part for each in above if type(each) is tuple for part in each[:8]]
    return any(each is frame for each in (*above, *flat))


def _with_tasks(guide: Guide, places: list[Place], ident: int) -> list[Place]:
    """Say of the inner part of an event loop's stack which task it belongs to."""
    for loop in _loops_among(guide, places):
        try:
            task = guide.asyncio.current_task(loop)
        except RuntimeError:
            continue
        coroutine: Any = task.get_coro() if task is not None else None
        code = getattr(getattr(coroutine, "cr_frame", None), "f_code", None)
        if task is None or code is None:
            continue
        ends = [at for at, place in enumerate(places) if place.code is code]
        who = Who(task.get_name(), ident, ref(task))
        for place in places[: ends[-1] + 1] if ends else ():
            place.who = who
        break
    return places


def _loops_among(guide: Guide, places: list[Place]) -> Iterator[Any]:
    if guide.asyncio is None:
        return
    kind, runner = guide.asyncio.AbstractEventLoop, guide.asyncio.Runner
    for place in places:
        for value in place.values:
            loop = getattr(value, "_loop", None) if type(value) is runner else value
            if issubclass(type(loop), kind):
                guide.loops.add(ref(loop))
                yield loop


def _handled_exceptions(names: dict[int | None, str]) -> list[Place]:
    places = []
    handled: dict[int, Any] = undisturbed(sys._current_exceptions)  # noqa: SLF001 - the documented way
    for ident, error in handled.items():
        if error is not None and ident != threading.get_ident():
            who = Who(names.get(ident, str(ident)), ident)
            title = f"the exception that thread {who.name} is handling"
            places.append(single("exception", who, title, [error]))
    for name in ("last_exc", "last_value", "last_traceback"):
        error = getattr(sys, name, None)
        if error is not None:
            places.append(single("exception", NOBODY, f"sys.{name}", [error]))
    return places


def single(kind: RootKind, who: Who, title: str, values: list[Any]) -> Place:
    """A place that is no frame, and whose values have no names."""
    return Place(kind, who, values, tuple, is_user=False, title=title)


def module_roots(wanted: Owner) -> list[Root]:
    """The globals of the user's own modules, or of other packages."""
    roots = []
    for name, module in list(sys.modules.items()):
        if issubclass(type(module), ModuleType):
            file = file_of(module)
            if name == "__main__" and file is None:
                file = "<main>"
            if file is not None and _owner(file, name) is wanted:
                roots.append(Root("modules", name, _module_reader(name, ref(module))))
    return roots


def _owner(file: str, module: str) -> Owner:
    return Owner.USER if is_the_applications(file, module) else owner_of(file, module)


def _module_reader(name: str, weakly: ref[ModuleType]) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        module = weakly()
        if module is None:
            return []
        variables = ModuleType.__getattribute__(module, "__dict__")
        known = list(variables.items())  # at once: it may change meanwhile
        variables = {name: value for name, value in known if name not in _IMPORTED}
        names, values = list(variables), list(variables.values())
        place = Place("global", NOBODY, values, pairs(names, values), is_user=True)
        place.title = f"module {name}"
        return [place]

    return read


def loop_roots(guide: Guide) -> list[Root]:
    """What event loops are to call, now or later."""
    return [Root("event loops", "", _loop_reader(weakly)) for weakly in guide.loops]


def _loop_reader(weakly: ref[Any]) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        loop = weakly()
        title = "a call scheduled on the event loop"
        held = gc.get_referents(loop) if loop is not None else []
        return [single("scheduled call", NOBODY, title, held)]

    return read
