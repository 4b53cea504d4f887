"""Following references: reads the referents of an object without running its code.

No code of the application runs here. Referents are read with ``gc.get_referents``, plus
the locals of frames. Objects that lead nowhere or everywhere are not followed: modules,
the globals of functions, classes of libraries, SQLAlchemy's engines, pools and
mappings, the drivers' pools with their workers, event loops, and tasks that have not
ended (each task is a root of its own).
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from itertools import islice
from types import (
    CellType,
    CodeType,
    FrameType,
    FunctionType,
    MethodType,
    ModuleType,
)
from typing import Any
from weakref import ref

from poolwatch.diagnosis.references.attributes import (
    bases_of,
    class_dict,
    class_name,
    is_thread_local,
    module_of,
)
from poolwatch.diagnosis.references.frames import (
    SUSPENDABLE,
    local_variables,
    stored_in,
)
from poolwatch.diagnosis.references.futures import future_referents, task_referents
from poolwatch.runtime.libraries import by_package, libraries
from poolwatch.stacks import greenlets
from poolwatch.stacks.code_owner import file_of, is_application_module
from poolwatch.stacks.packages import WEB

Follow = Callable[[Any], Sequence[Any]]

_SKIP_STEP = 20_000
"""Entries that are skipped in one call."""


def is_of_server(node: Any) -> bool:
    """Whether it is an object of a server or web framework, not of the application."""
    return module_of(type(node)).partition(".")[0] in WEB


class Guide:
    """How to follow the references of an object, by its type. Made for one search.

    Types are looked up by their id: a metaclass may have a hash of its own.
    """

    def __init__(self) -> None:
        self.by_type: dict[int, Follow | None] = {}
        """By the id of a type: reads an object's referents; None if not followed."""
        self.followed: set[int] = set()
        """Types whose references are followed."""
        self.likely: set[int] = set()
        """Types of objects that often lead to a connection."""
        self.lengths: dict[int, Callable[[Any], int]] = {}
        """Counts the entries of a container of that type."""
        self.loops: set[ref[Any]] = set()
        """Event loops found on the way."""
        self.loops_of_frames: frozenset[ref[Any]] = frozenset()
        """Event loops found from the running frames, which may run them again."""
        self._kinds: list[type] = []
        """Keeps the types alive, and their ids with them."""
        self._by_base: dict[int, Follow | None] = {}
        self._set_rule(None, *_LEAVES, *pools_of_drivers())
        self._set_rule(gc.get_referents, *CONTAINERS)
        self._set_rule(stored_in, *SUSPENDABLE)
        self._set_rule(_function_referents, FunctionType)
        self._set_rule(_class_referents, type)
        self._set_rule(_ended_frame_referents, FrameType)
        self._set_rule(_context_referents, Context)
        self.asyncio: Any = sys.modules.get("asyncio")
        """The module, if the application has imported it."""
        if self.asyncio is not None:
            self._set_rule(self._note_loop, self.asyncio.AbstractEventLoop)
            self._set_rule(future_referents, self.asyncio.Future)
            self._set_rule(task_referents, self.asyncio.Task)
        futures = sys.modules.get("concurrent.futures._base")
        if futures is not None:
            self._set_rule(future_referents, futures.Future)
        library = sys.modules.get("greenlet")
        self.greenlet: type | None = getattr(library, "greenlet", None)
        if self.greenlet is not None:
            self._set_rule(_greenlet_referents, self.greenlet)

    def _set_rule(self, follow: Follow | None, *bases: type) -> None:
        self._by_base.update(dict.fromkeys(map(id, bases), follow))

    def forget(self) -> None:
        """Drop the references to all types, and the cycle with itself."""
        self.by_type.clear()
        self._by_base.clear()
        self._kinds.clear()

    def learn(self, kind: type) -> Follow | None:
        """Decide how to follow a new type."""
        key = id(kind)
        self._kinds.append(kind)
        self.by_type[key] = rule = self._decide(kind)
        if rule is not None:
            self.followed.add(key)
        if rule is not None and _is_likely(kind):
            self.likely.add(key)
        for base in CONTAINERS if rule is gc.get_referents else ():
            if issubclass(kind, base):
                self.lengths[key] = base.__len__
        return rule

    def _decide(self, kind: type) -> Follow | None:
        if not _worth_following(kind):
            return None
        for base in bases_of(kind):
            if id(base) in self._by_base:
                return self._by_base[id(base)]
        return gc.get_referents

    def follow(self, node: Any) -> Sequence[Any]:
        """The referents of an object; empty if its type is not followed."""
        kind = type(node)
        rule = self.by_type[id(kind)] if id(kind) in self.by_type else self.learn(kind)
        return rule(node) if rule is not None else ()

    def length(self, node: Any) -> int:
        """The number of entries of a container; 1 for anything else."""
        count = self.lengths.get(id(type(node)))
        return count(node) if count is not None else 1

    def _note_loop(self, loop: Any) -> Sequence[Any]:
        self.loops.add(ref(loop))
        return ()


CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_LEAVES: tuple[type, ...] = (
    str, bytes, bytearray, memoryview, int, float, complex, range, slice, type(None),
    ModuleType, CodeType, property, ref,
    type(str.join), type("".__str__), type(dict.__dict__["fromkeys"]),
    type(str.__dict__["join"]), type(type.__dict__["__dict__"]),
)  # fmt: skip
_LOGGING_REGISTRIES = frozenset({"Logger", "RootLogger", "Manager", "PlaceHolder"})


def pools_of_drivers() -> tuple[type, ...]:
    """Loaded pool classes. A pool's reference to a checked-out connection is no use."""
    named = [pair for each in libraries() for pair in each.pool_classes]
    found = (getattr(sys.modules.get(module), name, None) for module, name in named)
    return tuple(kind for kind in found if isinstance(kind, type))


def _worth_following(kind: type) -> bool:
    module, name = module_of(kind), class_name(kind)
    package = module.partition(".")[0]
    library = by_package().get(package)
    if library is not None:
        in_followed_module = module.startswith(library.searched_modules or "")
        left_out = {name, package} & library.not_searched
        return (in_followed_module and not left_out) or "ExecutionContext" in name
    if package == "poolwatch":
        return module.startswith("poolwatch.commands.demo.app")
    return package != "logging" or name not in _LOGGING_REGISTRIES


def is_of_sqlalchemy(kind: type) -> bool:
    """Whether it is a session, connection, result or the like, or derived from one."""
    followed = by_package()["sqlalchemy"].searched_modules
    return any(module_of(base).startswith(followed) for base in bases_of(kind))


def _is_likely(kind: type) -> bool:
    """Whether such objects often lead to a connection: they are visited first."""
    likely_types = (CellType, MethodType, *SUSPENDABLE)
    if issubclass(kind, likely_types) or is_thread_local(kind):
        return True
    return module_of(kind) == "contextlib" or is_of_sqlalchemy(kind)


def newest(container: Any, most: int) -> Sequence[Any]:
    """The last entries. Copying all of them would stop the application too long."""
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


class ChunkReader:
    """Reads the entries of a large container in chunks."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._iterators: list[Iterator[Any]] = []
        self._position = -1

    def read(self, begin: int, count: int) -> list[Any]:
        """The entries from one position on; of a dict the keys and the values."""
        for base in (list, tuple):
            if issubclass(type(self._container), base):
                part = slice(begin, begin + count)
                return list(base.__getitem__(self._container, part))
        if begin != self._position:
            self._restart_at(begin)
        try:
            found = self._advance(count)
        except RuntimeError:  # it has changed since
            self._restart_at(begin)
            found = self._advance(count)
        self._position = begin + count
        return found

    def _restart_at(self, begin: int) -> None:
        self._iterators = [_iterate(self._container)]
        if issubclass(type(self._container), dict):
            self._iterators.append(iter(dict.values(self._container)))
        for _ in range(begin // _SKIP_STEP):  # others may run in between
            self._advance(_SKIP_STEP)
        self._advance(begin % _SKIP_STEP)

    def _advance(self, count: int) -> list[Any]:
        found: list[Any] = []
        for each in self._iterators:
            found += islice(each, count)
        return found


def _iterate(container: Any) -> Iterator[Any]:
    for base in CONTAINERS:
        if issubclass(type(container), base):
            return base.__iter__(container)
    raise TypeError


def _function_referents(function: Any) -> Sequence[Any]:
    """The referents of a function, without its globals."""
    others = (function.__defaults__, function.__kwdefaults__, function.__dict__)
    return [*(function.__closure__ or ()), *[part for part in others if part]]


def _class_referents(kind: Any) -> Sequence[Any]:
    """The attributes of a class that the application defines."""
    return list(class_members(kind).values())


def class_members(kind: type) -> dict[str, Any]:
    """The members of a class of the application; nothing for a library's class."""
    module = module_of(kind)
    home = sys.modules.get(module)
    file = file_of(home) or "<unknown>"
    if home is None or not is_application_module(file, module):
        return {}
    return dict(class_dict(kind))


def _context_referents(context: Any) -> Sequence[Any]:
    return list(Context.values(context))


def _greenlet_referents(greenlet: Any) -> Sequence[Any]:
    """The variables of a suspended greenlet, or the result of an ended one.

    Under gevent and eventlet a suspended greenlet has none here: it is its own root.
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


def _ended_frame_referents(frame: Any) -> Sequence[Any]:
    """The values of an ended frame in a traceback; empty for any other frame.

    Only an ended frame has its code object among its referents.
    """
    held = stored_in(frame)
    return held if any(each is frame.f_code for each in held) else ()
