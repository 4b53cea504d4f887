"""Following references: what an object refers to, at no cost for its owner.

Nothing here runs code of the application: what an object refers to is what the garbage
collector says, plus the locals of frames. Some things lead nowhere or everywhere and
are not followed: modules, the globals of functions, classes of libraries, SQLAlchemy's
engines, pools and mappings, the pools of drivers with all that works for them, event
loops, and tasks that have not ended (they are looked at by themselves).

Locals. A suspended generator or coroutine and an ended frame show their locals to the
garbage collector. A running frame does not; there ``f_locals`` is the only way. From
Python 3.13 on that is a harmless view. Before, it is a dict that the frame keeps, and
which therefore keeps alive what the function has since deleted. So the dict is emptied
right after it was copied, but for two cases. The application has it in its hands
(``locals()``, ``eval``): then it is left as it is. Or a trace or profile function in
Python is at work on the frame, which writes that dict back into the variables when it
is done: then the frame is not read at all. Such a function has the frame among its own
locals.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from itertools import islice
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
)
from typing import Any
from weakref import ref

from poolwatch import greenlets
from poolwatch.ownership import Owner, owner_of

Follow = Callable[[Any], Sequence[Any]]

MOST = 1000
"""Entries of one container that are looked at, the newest first."""
SUSPENDABLE = (GeneratorType, CoroutineType, AsyncGeneratorType)

# Straight from ``type``: no metaclass has a say in it.
_module_of: Callable[[type], object] = type.__dict__["__module__"].__get__
class_name: Callable[[type], str] = type.__dict__["__name__"].__get__
bases_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
class_dict: Callable[[type], Mapping[str, Any]] = type.__dict__["__dict__"].__get__


def module_of(kind: type) -> str:
    """The name of the module that a class says it comes from; empty if it does not."""
    module = _module_of(kind)
    return module if type(module) is str else ""


def is_thread_local(kind: type) -> bool:
    """Whether it is ``threading.local`` or derived from it."""
    return any(class_name(base) == "_local" for base in bases_of(kind))


class Guide:
    """Knows how to go on from an object, by its type; made for one search."""

    def __init__(self) -> None:
        self.by_type: dict[type, Follow | None] = {}
        """What to call for an object of that type; None to leave it alone."""
        self.shortened = 0
        """Containers of which only a part was looked at."""
        self.loops: set[ref[Any]] = set()
        """Event loops met on the way."""
        self._by_base: dict[type, Follow | None] = {
            **dict.fromkeys(_LEAVES),
            **dict.fromkeys((dict, list, tuple, set, frozenset, deque), self._entries),
            FunctionType: _of_function,
            type: _of_class,
            **dict.fromkeys(SUSPENDABLE, held_by),
            FrameType: _of_ended,
            Context: _of_context,
        }
        self._by_base.update(dict.fromkeys(pools_of_drivers()))
        self.asyncio: Any = sys.modules.get("asyncio")
        """Only if the application has it."""
        if self.asyncio is not None:
            self._by_base[self.asyncio.AbstractEventLoop] = self._loop
            self._by_base[self.asyncio.Task] = _of_task
        library = sys.modules.get("greenlet")
        self.greenlet: type | None = getattr(library, "greenlet", None)
        if self.greenlet is not None:
            self._by_base[self.greenlet] = _of_greenlet

    def forget(self) -> None:
        """Let go of all types, and of itself."""
        self.by_type.clear()
        self._by_base.clear()

    def learn(self, kind: type) -> Follow | None:
        """Decide for a type that is met for the first time."""
        self.by_type[kind] = how = self._decide(kind)
        return how

    def _decide(self, kind: type) -> Follow | None:
        if not _worth_following(kind):
            return None
        for base in bases_of(kind):
            if base in self._by_base:
                return self._by_base[base]
        return gc.get_referents

    def _entries(self, container: Any) -> Sequence[Any]:
        if _length(container) <= MOST:
            return gc.get_referents(container)
        self.shortened += 1
        return _newest(container)

    def _loop(self, loop: Any) -> Sequence[Any]:
        self.loops.add(ref(loop))
        return ()


_LEAVES: tuple[type, ...] = (
    str, bytes, bytearray, memoryview, int, float, complex, range, slice, type(None),
    ModuleType, CodeType, property, ref,
    type(str.join), type("".__str__), type(dict.__dict__["fromkeys"]),
    type(str.__dict__["join"]), type(type.__dict__["__dict__"]),
)  # fmt: skip
_SQLALCHEMY = (
    "sqlalchemy.orm.session", "sqlalchemy.orm.scoping", "sqlalchemy.orm.query",
    "sqlalchemy.engine", "sqlalchemy.ext.asyncio", "sqlalchemy.util",
    "sqlalchemy.pool.base", "sqlalchemy.cyextension",
)  # fmt: skip
_TOO_MUCH = frozenset({
    "Engine", "OptionEngine", "AsyncEngine", "Pool", "_ConnectionRecord", "URL",
    "Logger", "RootLogger", "Manager", "PlaceHolder",
    "AdaptersMap", "TypesRegistry", "Transformer",
})  # fmt: skip

_POOLS = (
    ("psycopg2.pool", "AbstractConnectionPool"),
    ("psycopg_pool.base", "BasePool"),
    ("asyncpg.pool", "Pool"),
    ("asyncpg.pool", "PoolConnectionHolder"),
)


def pools_of_drivers() -> tuple[type, ...]:
    """Classes that may keep what they have lent, in nobody's hand; those loaded."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in _POOLS)
    return tuple(kind for kind in found if isinstance(kind, type))


def _worth_following(kind: type) -> bool:
    module, name = module_of(kind), class_name(kind)
    package = module.partition(".")[0]
    if package == "sqlalchemy":
        known = module.startswith(_SQLALCHEMY) and name not in _TOO_MUCH
        return known or "ExecutionContext" in name
    if package == "poolwatch":
        return module.startswith("poolwatch.demo.app")
    if package == "psycopg_pool":  # a worker remembers its last job, and what it was on
        return False
    if package == "psycopg":
        return name not in _TOO_MUCH
    return package != "logging" or name not in _TOO_MUCH


def is_of_sqlalchemy(kind: type) -> bool:
    """Whether it is a session, connection, result or the like, or derived from one."""
    return any(module_of(base).startswith(_SQLALCHEMY) for base in bases_of(kind))


def _length(container: Any) -> int:
    for kind in (dict, list, tuple, set, frozenset, deque):
        if issubclass(type(container), kind):
            return kind.__len__(container)
    return 0


def _newest(container: Any) -> Sequence[Any]:
    """The last entries, without a copy of all: that would stop the application."""
    kind = type(container)
    entries: Any
    if issubclass(kind, dict):
        entries = reversed(dict.values(container))
    elif issubclass(kind, list):
        entries = list.__reversed__(container)
    elif issubclass(kind, tuple):
        return tuple.__getitem__(container, slice(-MOST, None))
    elif issubclass(kind, deque):
        entries = deque.__reversed__(container)
    else:
        entries = frozenset.__iter__(container) if issubclass(kind, frozenset) else (
            set.__iter__(container)
        )  # fmt: skip
    return list(islice(entries, MOST))


def _of_function(function: Any) -> Sequence[Any]:
    """Everything but its globals."""
    others = (function.__defaults__, function.__kwdefaults__, function.__dict__)
    return [*(function.__closure__ or ()), *[part for part in others if part]]


def _of_class(kind: Any) -> Sequence[Any]:
    """The attributes of a class of the user's own."""
    return list(class_members(kind).values())


def class_members(kind: type) -> dict[str, Any]:
    """What a class of the user's own holds; nothing for one of a library."""
    module = module_of(kind)
    home = sys.modules.get(module)
    file = getattr(home, "__file__", None) or "<unknown>"
    if home is None or owner_of(file, module) is not Owner.USER:
        return {}
    return dict(class_dict(kind))


def _of_task(task: Any) -> Sequence[Any]:
    return gc.get_referents(task) if task.done() else ()


def _of_context(context: Any) -> Sequence[Any]:
    return list(Context.values(context))


def _of_greenlet(greenlet: Any) -> Sequence[Any]:
    """Its variables. Where greenlets are scheduled each is looked at by itself, and one
    that has ended has its result.
    """
    if greenlets.are_scheduled():
        ended = greenlets.is_dead(greenlet)
        return gc.get_referents(greenlet) if ended else ()
    values: list[Any] = []
    frame = greenlet.gr_frame  # None unless it is suspended
    while frame is not None:
        values += local_variables(frame)[1]
        frame = frame.f_back
    return values


def _of_ended(frame: Any) -> Sequence[Any]:
    """What a frame still holds that has ended (a traceback keeps it), else nothing.

    Only then its code is among what the garbage collector sees in it.
    """
    held = held_by(frame)
    return held if any(each is frame.f_code for each in held) else ()


def held_by(generator: Any) -> Sequence[Any]:
    """What a generator, coroutine or frame refers to: its variables and temporaries.

    Without the dict of its locals, if an earlier look has left one: see there.
    """
    held = gc.get_referents(generator)
    return [each for each in held if type(each) is not dict or each]


def local_variables(frame: FrameType) -> tuple[list[Any], list[Any]]:
    """Names and values of the local variables of a frame, as of now."""
    variables: Any = frame.f_locals
    if not issubclass(type(variables), dict):
        if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return [], []  # a class body or exec() with a mapping of its own
        pairs = variables.items()
        return [name for name, _ in pairs], [value for _, value in pairs]
    names = list(dict.keys(variables))
    values = list(dict.values(variables))
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(variables) <= 3:
        # Known to the frame, to this function and to getrefcount; to a walk only if it
        # was not empty, and then somebody else has filled it.
        variables.clear()
    return names, values


def frame_of(generator: Any) -> FrameType | None:
    """The frame of a generator, coroutine or async generator that has not ended."""
    kind = type(generator)
    if kind not in SUSPENDABLE:
        return None
    prefix = _prefix(kind)
    frame: FrameType | None = getattr(generator, prefix + "_frame")
    return frame


def awaited_by(generator: Any) -> Any:
    """What a generator, coroutine or async generator waits for."""
    kind = type(generator)
    name = "_yieldfrom" if _prefix(kind) == "gi" else "_await"
    return getattr(generator, _prefix(kind) + name)


def _prefix(kind: type) -> str:
    if kind is CoroutineType:
        return "cr"
    return "ag" if kind is AsyncGeneratorType else "gi"
