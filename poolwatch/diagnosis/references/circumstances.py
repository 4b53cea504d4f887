"""Circumstances of a hold that a chain of references shows.

A chain goes from the value of a root to the connection proxy. It is read while the
search has it, without running any code of its objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextvars import Context
from itertools import islice
from types import AsyncGeneratorType, CoroutineType
from typing import Any

from poolwatch.diagnosis.circumstances import Circumstance
from poolwatch.diagnosis.references.attributes import (
    attributes_of,
    bases_of,
    class_name,
    is_thread_local,
    module_of,
)
from poolwatch.diagnosis.references.frames import frame_of, is_suspendable
from poolwatch.diagnosis.references.places import Place, runs_user_code
from poolwatch.stacks.capture import resolve
from poolwatch.stacks.code_owner import library_of

_REGISTRIES = ("ScopedRegistry", "ThreadLocalRegistry", "scoped_session")
_EXIT_STACKS = ("ExitStack", "AsyncExitStack")
_FASTAPI = "fastapi"
_FLASK_G = "_AppCtxGlobals"
"""The class of flask.g, also Quart's: it is in a context variable."""
_ASYNC_CONNECTION = "sqlalchemy.ext.asyncio.engine", "AsyncConnection"
_MAX_ENTRIES = 200
"""Most variables, attributes or keys that are read in one place."""


def circumstances_of(place: Place, chain: Sequence[Any]) -> Iterator[Circumstance]:
    """The circumstances that a chain shows, from the root to the connection."""
    kinds = [type(node) for node in chain[:-1]]
    scoped = any(_is_registry(kind) for kind in kinds)
    if scoped:
        yield Circumstance("scoped session")
    elif any(map(is_thread_local, kinds)):
        yield Circumstance("thread-local")
    elif place.kind == "context variable" or any(map(_is_context, kinds)):
        yield Circumstance("context variable")
    if _is_in_request(place, chain):
        yield Circumstance("request")
    elif any(_is_exit_stack(kind) for kind in kinds):
        yield Circumstance("exit stack")
    yield from _suspended(chain)
    if _has_session_on_connection(place, chain):
        yield Circumstance("session on connection")


def _is_context(kind: type) -> bool:
    return kind is Context or class_name(kind) == _FLASK_G


def _is_registry(kind: type) -> bool:
    of_sqlalchemy = module_of(kind).startswith("sqlalchemy.")
    return of_sqlalchemy and class_name(kind).endswith(_REGISTRIES)


def _is_exit_stack(kind: type) -> bool:
    return module_of(kind) == "contextlib" and class_name(kind) in _EXIT_STACKS


def _is_in_request(place: Place, chain: Sequence[Any]) -> bool:
    """Whether an exit stack of FastAPI is on the chain: that of a request."""
    if not any(_is_exit_stack(type(node)) for node in chain[:-1]):
        return False
    if place.code is not None and library_of(place.code.co_filename) == _FASTAPI:
        return True
    for node in chain[:-1]:
        frame = frame_of(node)
        if frame is not None and library_of(frame.f_code.co_filename) == _FASTAPI:
            return True
        keys = _first(dict.keys(node)) if issubclass(type(node), dict) else ()
        if any(type(key) is str and key.startswith(_FASTAPI) for key in keys):
            return True
    return False


def _suspended(chain: Sequence[Any]) -> Iterator[Circumstance]:
    """The last generator or coroutine on the chain, the application's before others."""
    found = [node for node in chain[:-1] if is_suspendable(node)]
    frames = [(node, frame) for node in found if (frame := frame_of(node)) is not None]
    own = [(node, frame) for node, frame in frames if runs_user_code(frame)]
    for node, frame in (own or frames)[-1:]:
        where = resolve(((frame.f_code, frame.f_lasti),))[0]
        if type(node) is CoroutineType:
            yield Circumstance("coroutine", where)
        else:
            asynchronous = type(node) is AsyncGeneratorType
            closing = "aclosing" if asynchronous else "closing"
            yield Circumstance("generator", where, f"contextlib.{closing}()")


def _has_session_on_connection(place: Place, chain: Sequence[Any]) -> bool:
    """Whether a session on the chain, or beside its Connection, is bound to that."""
    for at, node in enumerate(chain[:-1]):
        if _is_derived(type(node), "sqlalchemy.engine.base", "Connection"):
            near = [*chain[:at], *_beside(place, chain, at)]
            return any(_bind_of(each) is node for each in near)
    return False


def _beside(place: Place, chain: Sequence[Any], at: int) -> list[Any]:
    """The variables or attributes beside the step to ``chain[at]``."""
    named: Iterable[tuple[Any, Any]] = ()
    if at and _is_derived(type(chain[at - 1]), *_ASYNC_CONNECTION):
        at -= 1
    if not at:
        named = place.names()
    elif type(chain[at - 1]) is dict:
        named = dict.items(chain[at - 1])
    else:
        named = (attributes_of(chain[at - 1]) or {}).items()
    return [value for _, value in _first(named)]


def _first(entries: Iterable[Any]) -> list[Any]:
    try:
        return list(islice(entries, _MAX_ENTRIES))
    except RuntimeError:  # it has changed meanwhile
        return []


def _bind_of(session: Any) -> Any:
    """The engine or connection that a Session is bound to; None for other objects."""
    kind = type(session)
    attributes = attributes_of(session) or {}
    if _is_derived(kind, "sqlalchemy.ext.asyncio.session", "AsyncSession"):
        return _bind_of(attributes.get("sync_session"))
    if _is_derived(kind, "sqlalchemy.orm.session", "Session"):
        return attributes.get("bind")
    return None


def _is_derived(kind: type, module: str, name: str) -> bool:
    return any(
        class_name(base) == name and module_of(base) == module
        for base in bases_of(kind)
    )
