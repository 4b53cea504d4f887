"""Greenlets of gevent and eventlet, and those that SQLAlchemy runs under asyncio.

Attributes are read through the descriptors of greenlet's own class, so that no code of
an application's subclass runs. The frames of a suspended greenlet are not part of any
thread's stack.
"""

from __future__ import annotations

import _thread
import gc
import sys
from contextlib import suppress
from itertools import compress, repeat
from operator import methodcaller
from sys import modules
from types import FrameType
from typing import Any
from weakref import ref

_SCHEDULERS = ("gevent", "eventlet")
_MAX_BLOCKS = 1_500_000
"""Allocated blocks above which the heap is not searched for greenlets: with so many, a
list of all objects stops every thread for 10 ms.
"""
_CHUNK = 50_000
_CALL = methodcaller("__call__")


def current_greenlet() -> Any:
    """The running greenlet; None if the library is not loaded."""
    library = modules.get("greenlet")
    return None if library is None else library.getcurrent()


def are_scheduled() -> bool:
    """Whether gevent or eventlet is loaded, which run application code in greenlets."""
    # sys.modules has None for a module whose import is blocked
    return any(modules.get(name) is not None for name in _SCHEDULERS)


def application_greenlet() -> Any:
    """The greenlet whose code is running, skipping SQLAlchemy's own under asyncio."""
    greenlet = current_greenlet()
    while greenlet is not None and _is_of_sqlalchemy(type(greenlet)):
        greenlet = parent_of(greenlet)
    return greenlet


def first_greenlet() -> Any:
    """The first greenlet of the running thread; it lives as long as the thread."""
    greenlet = parent = current_greenlet()
    while parent is not None:
        greenlet, parent = parent, parent_of(parent)
    return greenlet


def parent_of(greenlet: Any) -> Any:
    """The greenlet that continues when this one ends; None for a thread's first."""
    return _read(greenlet, "parent")


def is_dead(greenlet: Any) -> bool:
    """Whether the greenlet has ended."""
    return bool(_read(greenlet, "dead"))


def is_unstarted(greenlet: Any) -> bool:
    """Whether the greenlet has not run yet; its arguments may have a connection."""
    active = _kind().__dict__["__bool__"].__get__(greenlet)()
    return not active and not is_dead(greenlet)


def is_greenlet(value: Any) -> bool:
    """Whether it is a greenlet; False if the library is not loaded."""
    return "greenlet" in modules and issubclass(type(value), _kind())


def kept(reference: ref[Any]) -> list[Any]:
    """The greenlet of a weak reference, or None, in a list that keeps it.

    When a thread has ended, greenlet drops a reference to the thread's first greenlet
    if no object of the garbage collector has it: it is taken for a leftover on the
    stack (``~ThreadState``). A local variable of another thread is no such object, and
    its greenlet would be freed. So it is put into the list without a step in between.
    """
    return list(map(_CALL, (reference,)))


def suspended_frame(greenlet: Any) -> FrameType | None:
    """The greenlet's innermost frame, if it is suspended."""
    frame: FrameType | None = _read(greenlet, "gr_frame")
    return frame


def name_of(greenlet: Any) -> str:
    """The name that the application gave the greenlet, or else its address."""
    return _given_name(greenlet) or f"greenlet {id(greenlet):#x}"


def name_of_running(greenlet: Any) -> str:
    """The name of the running greenlet.

    gevent numbers a greenlet when its number is first read, which must be in its own
    thread.
    """
    kind = getattr(modules.get("gevent.greenlet"), "Greenlet", None)
    given = _given_name(greenlet)
    with suppress(AttributeError, TypeError):  # it is not a greenlet of gevent's hub
        if not given and isinstance(kind, type) and issubclass(type(greenlet), kind):
            return f"Greenlet-{kind.__dict__['minimal_ident'].__get__(greenlet, kind)}"
    return name_of(greenlet)


def _given_name(greenlet: Any) -> str | None:
    given = _read(greenlet, "__dict__").get("name")
    return given if type(given) is str else None


def thread_ident() -> int:
    """The ident of the running thread, even where each greenlet has its own."""
    ident: int = original("get_ident")()
    return ident


def original(name: str) -> Any:
    """The attribute of ``_thread`` as it was before gevent or eventlet replaced it."""
    gevent, eventlet = modules.get("gevent.monkey"), modules.get("eventlet.patcher")
    if gevent is not None:
        return gevent.get_original("_thread", name)
    if eventlet is not None:
        return getattr(eventlet.original("_thread"), name)
    return getattr(_thread, name)


def every_greenlet() -> list[ref[Any]] | None:
    """All greenlets and eventlet hubs; None if the heap is too large to search."""
    if sys.getallocatedblocks() > _MAX_BLOCKS:
        return None
    kinds = repeat((_kind(), _hub_of_eventlet()))
    found: list[ref[Any]] = []
    heap = gc.get_objects()
    for at in range(0, len(heap), _CHUNK):  # each chunk runs in C, for about 2 ms
        chunk = heap[at : at + _CHUNK]
        found += map(ref, compress(chunk, map(issubclass, map(type, chunk), kinds)))
    return found


def calls_of_hub(hub: Any) -> list[Any] | None:
    """The scheduled calls of an eventlet hub, with arguments; None if it is no hub."""
    if not issubclass(type(hub), _hub_of_eventlet()):
        return None
    timers = [timer for _, timer in [*hub.timers, *hub.next_timers]]
    calls = [timer.tpl for timer in timers if not timer.called]
    return [part for call, args, named in calls for part in (call, *args, named)]


def _hub_of_eventlet() -> Any:
    """The class of eventlet's hubs; without instances if eventlet is not loaded."""
    return getattr(modules.get("eventlet.hubs.hub"), "BaseHub", _NoHub)


class _NoHub:
    """Has no instances."""


def _kind() -> Any:
    return modules["greenlet"].greenlet


def _read(greenlet: Any, name: str) -> Any:
    return _kind().__dict__[name].__get__(greenlet)


def _is_of_sqlalchemy(kind: type) -> bool:
    module = type.__dict__["__module__"].__get__(kind)
    return type(module) is str and module.startswith("sqlalchemy.")
