"""The roots of a search: running frames, modules, stored exceptions.

Tasks are in :mod:`poolwatch.diagnosis.references.tasks`, event loops in
:mod:`poolwatch.diagnosis.references.loops`.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, ModuleType
from typing import Any
from weakref import ref

from poolwatch.diagnosis.references.follow import Guide
from poolwatch.diagnosis.references.liveness import may_read
from poolwatch.diagnosis.references.loops import is_stopped
from poolwatch.diagnosis.references.places import (
    NO_OWNER,
    Place,
    Root,
    RootOwner,
    pairs,
    stack_places,
    unnamed_place,
    unreadable_place,
)
from poolwatch.runtime.gc_pause import undisturbed
from poolwatch.stacks import greenlets
from poolwatch.stacks.capture import current_frames
from poolwatch.stacks.code_owner import (
    CodeOwner,
    code_owner_of,
    file_of,
    is_application_module,
)
from poolwatch.stacks.holder import per_greenlet

_IMPORTED = frozenset({"__loader__", "__spec__", "__builtins__"})
"""Set by the import system. pytest's loader refers to the whole test run."""


def thread_roots(guide: Guide, first: Iterable[int | None]) -> list[Root]:
    """All threads; those with an ident in ``first`` come before the others."""
    named = thread_names() | per_greenlet.names_of_running()
    first_keys = set(first)
    idents = sorted(current_frames(), key=lambda each: each not in first_keys)
    names = [named.get(ident, str(ident)) for ident in idents]
    return [
        Root("threads", name, _thread_reader(guide, ident, name))
        for ident, name in zip(idents, names, strict=True)
    ]


def thread_names() -> dict[int | None, str]:
    """The names of threads, read without a call of a class derived from Thread."""
    attributes = [object.__getattribute__(t, "__dict__") for t in threading.enumerate()]
    return {each.get("_ident"): str(each.get("_name")) for each in attributes}


_TOGETHER = 16
"""Greenlets grouped in one root: a server may have thousands."""


def greenlet_roots(guide: Guide, first: Iterable[int | None]) -> list[Root]:
    """All suspended greenlets; each with an ``id()`` in ``first`` has its own root.

    Empty unless gevent or eventlet is loaded: SQLAlchemy's own greenlets are read with
    their tasks.
    """
    if guide.greenlet is None or not greenlets.are_scheduled():
        return []
    found = greenlets.every_greenlet()
    if found is None:
        return [
            Root(
                "greenlets", "", lambda: [unreadable_place("suspended frame", NO_OWNER)]
            )
        ]
    first_keys = set(first)
    keys = [id(greenlets.kept(each)[0]) for each in found]
    with_keys = list(zip(found, keys, strict=True))
    holding = [(each,) for each, key in with_keys if key in first_keys]
    others = [each for each, key in with_keys if key not in first_keys]
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
        for weak_ref in group:
            kept = greenlets.kept(weak_ref)
            if kept[0] is not None:
                places += _places_of_greenlet(kept[0])
        return places

    return read


def _places_of_greenlet(greenlet: Any) -> list[Place]:
    calls = greenlets.calls_of_hub(greenlet)
    if calls is not None:
        title = "a call that eventlet will make"
        return [unnamed_place("scheduled call", NO_OWNER, title, calls)]
    owner = RootOwner(per_greenlet.name_of(greenlet), id(greenlet))
    frame = greenlets.suspended_frame(greenlet)
    if frame is not None:
        return list(stack_places(frame, owner, "suspended frame"))
    if not greenlets.is_unstarted(greenlet):
        return []
    title = f"the arguments of {owner.name}, which is yet to start"
    return [unnamed_place("scheduled call", owner, title, gc.get_referents(greenlet))]


def exception_roots() -> list[Root]:
    """Exceptions that threads are handling, and the last one of an interpreter."""
    names = thread_names()
    return [Root("exceptions", "", lambda: _handled_exceptions(names))]


def _thread_reader(guide: Guide, ident: int, name: str) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        # Not in a variable: for the searching thread it would be this very frame.
        places = list(
            stack_places(_innermost(ident), RootOwner(name, ident), "running frame")
        )
        return _with_tasks(guide, places, ident)

    return read


def _innermost(ident: int) -> FrameType | None:
    return current_frames().get(ident)


def _with_tasks(guide: Guide, places: list[Place], ident: int) -> list[Place]:
    """Assign the inner part of an event loop's stack to the task that runs there."""
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
        owner = RootOwner(task.get_name(), ident, ref(task))
        for place in places[: ends[-1] + 1] if ends else ():
            place.owner = owner
        break
    return places


def _loops_among(guide: Guide, places: list[Place]) -> Iterator[Any]:
    if guide.asyncio is None:
        return
    kind, runner = guide.asyncio.AbstractEventLoop, guide.asyncio.Runner
    for place in places:
        place.values = [each for each in place.values if not _is_spent(place, each)]
        for value in place.values:
            loop = getattr(value, "_loop", None) if type(value) is runner else value
            if issubclass(type(loop), kind):
                guide.loops.add(ref(loop))
                yield loop


def _is_spent(place: Place, value: Any) -> bool:
    """Whether it is a stopped loop, in a variable that its function reads no more."""
    if place.code is None or not is_stopped(value):
        return False
    names = [name for name, each in place.names() if each is value]
    return not any(may_read(place.code, place.lasti, name) for name in names)


def _handled_exceptions(names: dict[int | None, str]) -> list[Place]:
    places = []
    handled: dict[int, Any] = undisturbed(sys._current_exceptions)  # noqa: SLF001 - the documented way
    for ident, error in handled.items():
        if error is not None and ident != threading.get_ident():
            owner = RootOwner(names.get(ident, str(ident)), ident)
            title = f"the exception that thread {owner.name} is handling"
            places.append(unnamed_place("exception", owner, title, [error]))
    for name in ("last_exc", "last_value", "last_traceback"):
        error = getattr(sys, name, None)
        if error is not None:
            places.append(unnamed_place("exception", NO_OWNER, f"sys.{name}", [error]))
    return places


def module_roots(wanted: CodeOwner) -> list[Root]:
    """The globals of the modules that belong to ``wanted``."""
    roots = []
    for name, module in list(sys.modules.items()):
        if issubclass(type(module), ModuleType):
            file = file_of(module)
            if name == "__main__" and file is None:
                file = "<main>"
            if file is not None and _owner_of_module(file, name) is wanted:
                roots.append(Root("modules", name, _module_reader(name, ref(module))))
    return roots


def _owner_of_module(file: str, module: str) -> CodeOwner:
    return (
        CodeOwner.USER
        if is_application_module(file, module)
        else code_owner_of(file, module)
    )


def _module_reader(name: str, weak_ref: ref[ModuleType]) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        module = weak_ref()
        if module is None:
            return []
        variables = ModuleType.__getattribute__(module, "__dict__")
        known = list(variables.items())  # at once: it may change meanwhile
        variables = {name: value for name, value in known if name not in _IMPORTED}
        names, values = list(variables), list(variables.values())
        place = Place("global", NO_OWNER, values, pairs(names, values), is_user=True)
        place.title = f"module {name}"
        return [place]

    return read
