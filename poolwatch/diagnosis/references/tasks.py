"""Asyncio tasks as roots: their suspended frames, down to the innermost await."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from types import FrameType
from typing import Any
from weakref import ref

from poolwatch.diagnosis.references.follow import (
    Guide,
    awaited_by,
    class_name,
    frame_of,
    held_by,
    is_suspendable,
    local_variables,
)
from poolwatch.diagnosis.references.places import (
    DEEPEST,
    Place,
    Root,
    Who,
    is_users,
    pairs,
    single,
    stack_places,
    unread,
)
from poolwatch.stacks import greenlets

_ASEND = ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper")


_TOGETHER = 16
"""Tasks of one root: there may be ten thousand, most of them idle."""


def holding_task_roots(guide: Guide, known: Iterable[Callable[[], Any]]) -> list[Root]:
    """The tasks that took the suspicious holds, one by one."""
    found: dict[ref[Any], None] = {}
    for weakly in known:
        task = weakly()
        if task is not None:
            found[ref(task)] = None
            guide.loops.add(ref(task.get_loop()))
    return [_root(guide, (weakly,)) for weakly in found]


def task_roots(guide: Guide, known: Iterable[Callable[[], Any]]) -> list[Root]:
    """All other tasks of the event loops that are known so far."""
    others: list[ref[Any]] = []
    roots = []
    for loop in list(guide.loops):
        try:
            others += _tasks_of(guide, loop())
        except RuntimeError:  # it changed all the time
            roots.append(Root("tasks", "those of an event loop", _unreadable))
    taken = {id(weakly()) for weakly in known}
    others = [weakly for weakly in others if id(weakly()) not in taken]
    groups = [
        tuple(others[at : at + _TOGETHER]) for at in range(0, len(others), _TOGETHER)
    ]
    return roots + [_root(guide, group) for group in groups]


def _tasks_of(guide: Guide, loop: Any) -> list[ref[Any]]:
    return (
        [ref(task) for task in guide.asyncio.all_tasks(loop)]
        if loop is not None
        else []
    )


def _root(guide: Guide, group: tuple[ref[Any], ...]) -> Root:
    task = group[0]()
    title = task.get_name() if task is not None else ""
    if len(group) > 1:
        title += f" and {len(group) - 1} more"
    return Root("tasks", title, _task_reader(guide, group), len(group))


def _unreadable() -> list[Place]:
    raise RuntimeError


def _task_reader(
    guide: Guide, group: tuple[ref[Any], ...]
) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        places: list[Place] = []
        for weakly in group:
            places += _places_of(guide, weakly)
        return places

    return read


def _places_of(guide: Guide, weakly: ref[Any]) -> list[Place]:
    task = weakly()
    if task is None or task.done():
        return []
    who = Who(task.get_name(), None, weakly)
    places = list(_await_chain(guide, task.get_coro(), who))[::-1]
    for context in gc.get_referents(task):
        if type(context) is Context:
            title = f"task {who.name}"
            values = list(context.values())
            places.append(_context_place(context, values, who, title))
    return places


def _context_place(context: Any, values: list[Any], who: Who, title: str) -> Place:
    names = [variable.name for variable in context]
    place = single("context variable", who, title, values)
    place.names = pairs(names, values)
    return place


def _await_chain(guide: Guide, awaited: Any, who: Who) -> Iterator[Place]:
    """The suspended frames of a task, from its coroutine to the innermost await."""
    for _ in range(DEEPEST):
        if class_name(type(awaited)) in _ASEND:
            inner = [a for a in gc.get_referents(awaited) if is_suspendable(a)]
            awaited = inner[0] if inner else None
        frame = frame_of(awaited)
        if frame is None:
            return
        held = list(held_by(awaited))
        running = frame.f_back is not None
        yield Place(
            "running frame" if running else "suspended frame",
            who,
            held,
            _names_in(frame),
            is_user=is_users(frame),
            frame=frame,
        )
        for greenlet in _greenlets(guide, held):
            suspended = greenlets.suspended_frame(greenlet)
            yield from stack_places(suspended, who, "suspended frame")
        awaited = awaited_by(awaited)
    yield unread("suspended frame", who)


def _names_in(frame: FrameType) -> Callable[[], Iterable[tuple[str, Any]]]:
    return lambda: zip(*local_variables(frame), strict=False)


def _greenlets(guide: Guide, held: list[Any]) -> list[Any]:
    kind = guide.greenlet
    return [g for g in held if issubclass(type(g), kind)] if kind is not None else []
