"""Event loops as roots: whether a thread runs them, and the calls scheduled on them.

A loop that no thread runs resumes no task and makes no call. If a running frame has it,
or it is the current loop of a thread, it may be run again.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any
from weakref import ref

from poolwatch.diagnosis.references.attributes import (
    attributes_of,
    bases_of,
    class_dict,
    is_thread_local,
    module_of,
)
from poolwatch.diagnosis.references.follow import Guide
from poolwatch.diagnosis.references.places import NO_OWNER, Place, Root, unnamed_place

_KNOWN = ("asyncio", "uvloop")
"""Libraries whose loops say whether they are running."""


def loop_of(task: Any) -> Any:
    """The event loop of a task; None if the application has a class of its own."""
    return _ask(task, "get_loop", "_loop")


def is_stopped(loop: Any) -> bool:
    """Whether a loop is stopped at the moment. False if that is not known."""
    kind = type(loop)
    if None in (_of_library(kind, "run_forever"), _of_library(kind, "is_running")):
        return False
    return _ask(loop, "is_running", "_thread_id") in (None, False)


def is_closed(loop: Any) -> bool:
    """Whether a loop can never run again. False if that is not known."""
    return _ask(loop, "is_closed", "_closed") is True


def _ask(thing: Any, method: str, attribute: str) -> Any:
    """The result of a method of asyncio, or the attribute that it would read.

    None if a class of the application has a method of that name: it is not called.
    """
    member = _of_library(type(thing), method)
    if member is None:
        return None
    if type(member) is FunctionType:  # whose ``self.attribute`` could run any code
        return _known(thing).get(attribute)
    return member(thing)


def _of_library(kind: type, name: str) -> Callable[[Any], Any] | None:
    """A method, unless a class of the application has defined it."""
    for base in bases_of(kind):
        member: Any = class_dict(base).get(name)
        if member is not None:
            package = module_of(base).lstrip("_").partition(".")[0]
            return member if package in _KNOWN else None
    return None


def _known(thing: Any) -> dict[str, Any]:
    return attributes_of(thing) or {}


def resumes(guide: Guide, loop: Any) -> bool:
    """Whether a loop runs, or may be run again by the code that has it."""
    if loop is None or not is_stopped(loop):
        return True
    if is_closed(loop):
        return False
    return ref(loop) in guide.loops_of_frames or any(
        each is loop for each in _current_loops(guide)
    )


def _current_loops(guide: Guide) -> Iterator[Any]:
    """The current event loops of all threads that live."""
    events = getattr(guide.asyncio, "events", None)
    policy = getattr(events, "_event_loop_policy", None)
    for local in _known(policy).values():
        if is_thread_local(type(local)):
            for by_thread in gc.get_referents(local):
                if type(by_thread) is dict:
                    values = list(by_thread.values())
                    yield from (v.get("_loop") for v in values if type(v) is dict)


def loop_roots(guide: Guide) -> list[Root]:
    """The calls that are scheduled on event loops, and the contexts of these calls."""
    roots = []
    for weak_ref in guide.loops:
        alive = resumes(guide, weak_ref())
        roots += [
            Root("event loops", "", _calls_reader(weak_ref, alive), resumes=alive),
            Root("event loops", "", _contexts_reader(guide, weak_ref), resumes=False),
        ]
    return roots


def _calls_reader(weak_ref: ref[Any], alive: bool) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        loop = weak_ref()
        title = "a call scheduled on the event loop"
        if not alive:
            title = "a call scheduled on an event loop that nobody runs"
        handles = [] if loop is None else _handles(loop)
        if handles is None:  # the loop of another library
            parts = gc.get_referents(loop)
        else:
            parts = [each for one in handles for each in _call_of(one)]
        place = unnamed_place("scheduled call", NO_OWNER, title, parts)
        place.resumes = alive
        return [place]

    return read


def _contexts_reader(guide: Guide, weak_ref: ref[Any]) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        loop = weak_ref()
        handles = (None if loop is None else _handles(loop)) or []
        title = "the context of a call scheduled on the event loop"
        contexts = [_slot(guide.asyncio.Handle, "_context", one) for one in handles]
        return [unnamed_place("context variable", NO_OWNER, title, contexts)]

    return read


def _call_of(handle: Any) -> Iterator[Any]:
    """The function of a scheduled call and its arguments."""
    for kind in bases_of(type(handle)):
        if "_callback" in class_dict(kind):
            yield _slot(kind, "_callback", handle)
            yield from _slot(kind, "_args", handle) or ()


def _slot(kind: type, name: str, handle: Any) -> Any:
    member: Any = class_dict(kind).get(name)
    try:
        return member.__get__(handle)
    except (AttributeError, TypeError):
        return None


def _handles(loop: Any) -> list[Any] | None:
    """The scheduled calls of a loop of asyncio; None for that of another library."""
    known = _known(loop)
    ready, timers = known.get("_ready"), known.get("_scheduled")
    if type(ready) is not deque or type(timers) is not list:
        return None
    signals = known.get("_signal_handlers")
    handles = [*ready, *timers, *(signals.values() if type(signals) is dict else ())]
    by_file = _known(known.get("_selector")).get("_fd_to_key")
    for key in list(by_file.values()) if type(by_file) is dict else ():
        handles += _of_selector_key(key)
    return [each for each in handles if each is not None]


def _of_selector_key(key: Any) -> Iterable[Any]:
    """The calls for reading from a file and writing to it."""
    data = tuple.__getitem__(key, 3) if issubclass(type(key), tuple) else None
    return data if type(data) is tuple else ()
