"""Following references: what an object refers to, without a call of the application.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from itertools import islice
from types import (
    AsyncGeneratorType,
    CellType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any
from weakref import ref

from poolwatch.runtime.libraries import by_package, libraries
from poolwatch.stacks import greenlets
from poolwatch.stacks.code_owner import file_of, is_the_applications

Follow = Callable[[Any], Sequence[Any]]

_SKIPPED = 20_000
"""Entries that are skipped at once."""
SUSPENDABLE = (GeneratorType, CoroutineType, AsyncGeneratorType)

# Straight from ``type``: no metaclass has a say in it.
_module_of: Callable[[type], object] = type.__dict__["__module__"].__get__
class_name: Callable[[type], str] = type.__dict__["__name__"].__get__
bases_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
class_dict: Callable[[type], Mapping[str, Any]] = type.__dict__["__dict__"].__get__


def module_of(kind: type) -> str:
    """The name of a class's module; empty if unknown."""
    module = _module_of(kind)
    return module if type(module) is str else ""


def is_thread_local(kind: type) -> bool:
    """Whether it is ``threading.local`` or derived from it."""
    return any(class_name(base) == "_local" for base in bases_of(kind))


def is_suspendable(one: Any) -> bool:
    """Whether it is a generator or coroutine."""
    return issubclass(type(one), SUSPENDABLE)  # ``in`` would ask its metaclass


class Guide:
    """How to follow the references of an object, by its type. Made for one search.

    Types are looked up by their id: a metaclass may have a hash of its own.
    """

    def __init__(self) -> None:
        self.by_type: dict[int, Follow | None] = {}
        """Returns the references of an object of that type; None: not followed."""
        self.followed: set[int] = set()
        """Types whose references are followed."""
        self.likely: set[int] = set()
        """Types of objects that often lead to a connection."""
        self.lengths: dict[int, Callable[[Any], int]] = {}
        """Counts the entries of a container of that type."""
        self.loops: set[ref[Any]] = set()
        """Event loops found on the way."""
        self._kinds: list[type] = []
        """Keeps the types alive, and their ids with them."""
        self._by_base: dict[int, Follow | None] = {}
        self._teach(None, *_LEAVES, *pools_of_drivers())
        self._teach(gc.get_referents, *_CONTAINERS)
        self._teach(held_by, *SUSPENDABLE)
        self._teach(_of_function, FunctionType)
        self._teach(_of_class, type)
        self._teach(_of_ended, FrameType)
        self._teach(_of_context, Context)
        self.asyncio: Any = sys.modules.get("asyncio")
        """Only if the application has it."""
        if self.asyncio is not None:
            self._teach(self._loop, self.asyncio.AbstractEventLoop)
            self._teach(_of_task, self.asyncio.Task)
        library = sys.modules.get("greenlet")
        self.greenlet: type | None = getattr(library, "greenlet", None)
        if self.greenlet is not None:
            self._teach(_of_greenlet, self.greenlet)

    def _teach(self, follow: Follow | None, *bases: type) -> None:
        self._by_base.update(dict.fromkeys(map(id, bases), follow))

    def forget(self) -> None:
        """Let go of all types, and of itself."""
        self.by_type.clear()
        self._by_base.clear()
        self._kinds.clear()

    def learn(self, kind: type) -> Follow | None:
        """Decide how to follow a new type."""
        key = id(kind)
        self._kinds.append(kind)
        self.by_type[key] = how = self._decide(kind)
        if how is not None:
            self.followed.add(key)
        if how is not None and _is_likely(kind):
            self.likely.add(key)
        for base in _CONTAINERS if how is gc.get_referents else ():
            if issubclass(kind, base):
                self.lengths[key] = base.__len__
        return how

    def _decide(self, kind: type) -> Follow | None:
        if not _worth_following(kind):
            return None
        for base in bases_of(kind):
            if id(base) in self._by_base:
                return self._by_base[id(base)]
        return gc.get_referents

    def follow(self, one: Any) -> Sequence[Any]:
        """Everything that an object refers to and that is followed."""
        kind = type(one)
        how = self.by_type[id(kind)] if id(kind) in self.by_type else self.learn(kind)
        return how(one) if how is not None else ()

    def length(self, one: Any) -> int:
        """The number of entries of a container; 1 for anything else."""
        count = self.lengths.get(id(type(one)))
        return count(one) if count is not None else 1

    def _loop(self, loop: Any) -> Sequence[Any]:
        self.loops.add(ref(loop))
        return ()


_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_LEAVES: tuple[type, ...] = (
    str, bytes, bytearray, memoryview, int, float, complex, range, slice, type(None),
    ModuleType, CodeType, property, ref,
    type(str.join), type("".__str__), type(dict.__dict__["fromkeys"]),
    type(str.__dict__["join"]), type(type.__dict__["__dict__"]),
)  # fmt: skip
_TOO_MUCH = frozenset({"Logger", "RootLogger", "Manager", "PlaceHolder"})


def pools_of_drivers() -> tuple[type, ...]:
    """Loaded pool classes. A pool refers to what it has lent, which is no use of it."""
    named = [pair for each in libraries() for pair in each.lenders]
    found = (getattr(sys.modules.get(module), name, None) for module, name in named)
    return tuple(kind for kind in found if isinstance(kind, type))


def _worth_following(kind: type) -> bool:
    module, name = module_of(kind), class_name(kind)
    package = module.partition(".")[0]
    library = by_package().get(package)
    if library is not None:
        known = module.startswith(library.followed or "")
        left_out = {name, package} & library.unfollowed
        return (known and not left_out) or "ExecutionContext" in name
    if package == "poolwatch":
        return module.startswith("poolwatch.commands.demo.app")
    return package != "logging" or name not in _TOO_MUCH


def is_of_sqlalchemy(kind: type) -> bool:
    """Whether it is a session, connection, result or the like, or derived from one."""
    followed = by_package()["sqlalchemy"].followed
    return any(module_of(base).startswith(followed) for base in bases_of(kind))


def _is_likely(kind: type) -> bool:
    """Whether such objects often lead to a connection: they are visited first."""
    often = (CellType, MethodType, *SUSPENDABLE)
    if issubclass(kind, often) or is_thread_local(kind):
        return True
    return module_of(kind) == "contextlib" or is_of_sqlalchemy(kind)


def newest(container: Any, most: int) -> Sequence[Any]:
    """The last entries, without a copy of all: that would stop the application."""
    kind = type(container)
    entries: Any
    if issubclass(kind, dict):
        entries = reversed(dict.values(container))
    elif issubclass(kind, list):
        entries = list.__reversed__(container)
    elif issubclass(kind, tuple):
        return tuple.__getitem__(container, slice(-most, None))
    elif issubclass(kind, deque):
        entries = deque.__reversed__(container)
    else:
        entries = _iterate(container)
    return list(islice(entries, most))


class Parts:
    """Reads the entries of a large container, some at a time."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._iterators: list[Iterator[Any]] = []
        self._at = -1

    def read(self, begin: int, count: int) -> list[Any]:
        """The entries from one position on; of a dict the keys and the values."""
        for base in (list, tuple):
            if issubclass(type(self._container), base):
                part = slice(begin, begin + count)
                return list(base.__getitem__(self._container, part))
        if begin != self._at:
            self._begin_at(begin)
        try:
            found = self._advance(count)
        except RuntimeError:  # it has changed since
            self._begin_at(begin)
            found = self._advance(count)
        self._at = begin + count
        return found

    def _begin_at(self, begin: int) -> None:
        self._iterators = [_iterate(self._container)]
        if issubclass(type(self._container), dict):
            self._iterators.append(iter(dict.values(self._container)))
        for _ in range(begin // _SKIPPED):  # others may run in between
            self._advance(_SKIPPED)
        self._advance(begin % _SKIPPED)

    def _advance(self, count: int) -> list[Any]:
        found: list[Any] = []
        for each in self._iterators:
            found += islice(each, count)
        return found


def _iterate(container: Any) -> Iterator[Any]:
    for base in _CONTAINERS:
        if issubclass(type(container), base):
            return base.__iter__(container)
    raise TypeError


def attributes_of(one: Any) -> dict[str, Any] | None:
    """The dict of an instance's attributes, read without a call of its class."""
    for base in bases_of(type(one)):
        member = class_dict(base).get("__dict__")
        if type(member) is GetSetDescriptorType:
            found = member.__get__(one)
            return found if type(found) is dict else None
    return None


def _of_function(function: Any) -> Sequence[Any]:
    """Everything but its globals."""
    others = (function.__defaults__, function.__kwdefaults__, function.__dict__)
    return [*(function.__closure__ or ()), *[part for part in others if part]]


def _of_class(kind: Any) -> Sequence[Any]:
    """The attributes of a class of the application's own."""
    return list(class_members(kind).values())


def class_members(kind: type) -> dict[str, Any]:
    """The members of a class of the application; nothing for a library's class."""
    module = module_of(kind)
    home = sys.modules.get(module)
    file = file_of(home) or "<unknown>"
    if home is None or not is_the_applications(file, module):
        return {}
    return dict(class_dict(kind))


def _of_task(task: Any) -> Sequence[Any]:
    return gc.get_referents(task) if task.done() else ()


def _of_context(context: Any) -> Sequence[Any]:
    return list(Context.values(context))


def _of_greenlet(greenlet: Any) -> Sequence[Any]:
    """The variables of a greenlet. Where greenlets are scheduled each is a root of its
    own, and one that has ended has its result.
    """
    if greenlets.are_scheduled():
        ended = greenlets.is_dead(greenlet)
        return gc.get_referents(greenlet) if ended else ()
    values: list[Any] = []
    frame = greenlets.suspended_frame(greenlet)
    while frame is not None:
        values += local_variables(frame)[1]
        frame = frame.f_back
    return values


def _of_ended(frame: Any) -> Sequence[Any]:
    """The values of a frame that has ended but is in a traceback, else nothing.

    Only then its code is among what the garbage collector sees in it.
    """
    held = held_by(frame)
    return held if any(each is frame.f_code for each in held) else ()


def held_by(generator: Any) -> Sequence[Any]:
    """What a generator, coroutine or frame refers to: its variables and temporaries.

    Without an empty dict of locals, which an earlier search may have left there.
    """
    held = gc.get_referents(generator)
    return [each for each in held if type(each) is not dict or each]


def local_variables(frame: FrameType) -> tuple[list[Any], list[Any]]:
    """Names and values of the local variables of a frame, as of now."""
    variables: Any = frame.f_locals
    if not issubclass(type(variables), dict):
        if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            within = gc.get_referents(variables)  # a class body or exec() with
            return [None] * len(within), within  # a mapping of its own
        pairs = variables.items()
        return [name for name, _ in pairs], [value for _, value in pairs]
    names = list(dict.keys(variables))
    values = list(dict.values(variables))
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(variables) <= 3:
        # Known to the frame, to this function and to getrefcount; to a walk only if it
        # was not empty, and then other code has filled it.
        variables.clear()
    return names, values


def frame_of(generator: Any) -> FrameType | None:
    """The frame of a generator, coroutine or async generator that has not ended."""
    if not is_suspendable(generator):
        return None
    prefix = _prefix(type(generator))
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
