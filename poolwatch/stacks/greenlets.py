"""Greenlets: those of gevent and eventlet, and the ones SQLAlchemy runs under asyncio.

They are read through the descriptors of greenlet's own class, so that a subclass of the
application's has no say. A greenlet that is suspended has its frames to itself: they
are on no thread's stack.
"""

from __future__ import annotations

import _thread
import gc
import sys
from contextlib import suppress
from itertools import compress, repeat
from sys import modules
from types import FrameType
from typing import Any
from weakref import ref

_SCHEDULERS = ("gevent", "eventlet")
_MOST_BLOCKS = 1_500_000
"""Blocks of memory in use above which the heap is not searched for greenlets: with so
many, a list of all objects stops every thread for 10 ms.
"""
_CHUNK = 50_000


def current_greenlet() -> Any:
    """The greenlet that runs; None where the library is not loaded."""
    library = modules.get("greenlet")
    return None if library is None else library.getcurrent()


def are_scheduled() -> bool:
    """Whether a library is loaded that runs the application's code in greenlets."""
    # None stands there for a module whose import is forbidden
    return any(modules.get(name) is not None for name in _SCHEDULERS)


def asking_greenlet() -> Any:
    """The greenlet whose code is running: under asyncio, not SQLAlchemy's own."""
    greenlet = current_greenlet()
    while greenlet is not None and _is_of_sqlalchemy(type(greenlet)):
        greenlet = parent_of(greenlet)
    return greenlet


def first_greenlet() -> Any:
    """The greenlet that the running thread began as; it lasts as long as the thread."""
    greenlet = parent = current_greenlet()
    while parent is not None:
        greenlet, parent = parent, parent_of(parent)
    return greenlet


def parent_of(greenlet: Any) -> Any:
    """The greenlet that goes on when this one ends; None for a thread's first."""
    return _read(greenlet, "parent")


def is_dead(greenlet: Any) -> bool:
    """Whether it has run to its end."""
    return bool(_read(greenlet, "dead"))


def is_to_start(greenlet: Any) -> bool:
    """Whether it has not run yet: it may have a connection among its arguments."""
    active = _kind().__dict__["__bool__"].__get__(greenlet)()
    return not active and not is_dead(greenlet)


def suspended_frame(greenlet: Any) -> FrameType | None:
    """Its innermost frame, if it is suspended."""
    frame: FrameType | None = _read(greenlet, "gr_frame")
    return frame


def name_of(greenlet: Any) -> str:
    """The name that the application has given it, or else its address."""
    return _given_name(greenlet) or f"greenlet {id(greenlet):#x}"


def own_name(greenlet: Any) -> str:
    """The name of the greenlet that runs. gevent numbers its greenlets when they are
    first asked for their number, which must be in their own thread.
    """
    kind = getattr(modules.get("gevent.greenlet"), "Greenlet", None)
    given = _given_name(greenlet)
    with suppress(AttributeError, TypeError):  # it does not belong to gevent's hub
        if not given and isinstance(kind, type) and issubclass(type(greenlet), kind):
            return f"Greenlet-{kind.__dict__['minimal_ident'].__get__(greenlet, kind)}"
    return name_of(greenlet)


def _given_name(greenlet: Any) -> str | None:
    given = _read(greenlet, "__dict__").get("name")
    return given if type(given) is str else None


def thread_ident() -> int:
    """The ident of the thread that runs, also where each greenlet has one."""
    ident: int = original("get_ident")()
    return ident


def original(name: str) -> Any:
    """What a name of ``_thread`` stood for before gevent or eventlet replaced it."""
    gevent, eventlet = modules.get("gevent.monkey"), modules.get("eventlet.patcher")
    if gevent is not None:
        return gevent.get_original("_thread", name)
    if eventlet is not None:
        return getattr(eventlet.original("_thread"), name)
    return getattr(_thread, name)


def every_greenlet() -> list[ref[Any]] | None:
    """All greenlets, and eventlet's hubs, which have scheduled calls; None if the heap
    is too large to be searched for them.
    """
    if sys.getallocatedblocks() > _MOST_BLOCKS:
        return None
    kinds = repeat((_kind(), _hub_of_eventlet()))
    found: list[ref[Any]] = []
    heap = gc.get_objects()
    for at in range(0, len(heap), _CHUNK):  # each of them in C, in about 2 ms
        some = heap[at : at + _CHUNK]
        found += map(ref, compress(some, map(issubclass, map(type, some), kinds)))
    return found


def calls_of_hub(hub: Any) -> list[Any] | None:
    """What eventlet is to call later, with the arguments; None if that is no hub."""
    if not issubclass(type(hub), _hub_of_eventlet()):
        return None
    timers = [timer for _, timer in [*hub.timers, *hub.next_timers]]
    calls = [timer.tpl for timer in timers if not timer.called]
    return [part for call, args, named in calls for part in (call, *args, named)]


def _hub_of_eventlet() -> Any:
    """The class of eventlet's hubs; a class without instances if it is not loaded."""
    return getattr(modules.get("eventlet.hubs.hub"), "BaseHub", _Nothing)


class _Nothing:
    """Never made."""


def _kind() -> Any:
    return modules["greenlet"].greenlet


def _read(greenlet: Any, name: str) -> Any:
    return _kind().__dict__[name].__get__(greenlet)


def _is_of_sqlalchemy(kind: type) -> bool:
    module = type.__dict__["__module__"].__get__(kind)
    return type(module) is str and module.startswith("sqlalchemy.")
