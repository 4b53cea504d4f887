"""Asyncio tasks as roots: their suspended frames, down to the innermost await."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from types import FrameType
from typing import Any
from weakref import ref

from poolwatch.diagnosis.references.follow import Guide
from poolwatch.diagnosis.references.frames import (
    awaits,
    frame_of,
    stored_in,
    variables_of,
)
from poolwatch.diagnosis.references.futures import callbacks_of
from poolwatch.diagnosis.references.loops import loop_of, resumes
from poolwatch.diagnosis.references.places import (
    MAX_FRAMES,
    Place,
    Root,
    RootOwner,
    pairs,
    runs_user_code,
    stack_places,
    unnamed_place,
    unreadable_place,
)
from poolwatch.stacks import greenlets

_TOGETHER = 16
"""Tasks grouped in one root: there may be ten thousand, most of them idle."""


def holding_task_roots(
    guide: Guide, holders: Iterable[Callable[[], Any]]
) -> list[Root]:
    """The tasks with the suspicious holds, one root each."""
    found: dict[ref[Any], bool] = {}
    for weak_ref in holders:
        task = weak_ref()
        if task is not None:
            loop = loop_of(task)
            found[ref(task)] = resumes(guide, loop)
            if loop is not None:
                guide.loops.add(ref(loop))
    return [_root(guide, (weak_ref,), alive) for weak_ref, alive in found.items()]


def task_roots(
    guide: Guide, holders: Iterable[Callable[[], Any]], *, alone: bool = False
) -> list[Root]:
    """All other tasks of the event loops found so far, in groups or each ``alone``."""
    size = 1 if alone else _TOGETHER
    roots: list[Root] = []
    holder_ids = {id(weak_ref()) for weak_ref in holders}
    for loop in list(guide.loops):
        try:
            others = _tasks_of(guide, loop())
        except RuntimeError:  # the set of tasks kept changing
            roots.append(Root("tasks", "those of an event loop", _unreadable))
            continue
        others = [weak_ref for weak_ref in others if id(weak_ref()) not in holder_ids]
        alive = resumes(guide, loop())
        roots += [
            _root(guide, tuple(others[at : at + size]), alive)
            for at in range(0, len(others), size)
        ]
    return roots


def _tasks_of(guide: Guide, loop: Any) -> list[ref[Any]]:
    return (
        [ref(task) for task in guide.asyncio.all_tasks(loop)]
        if loop is not None
        else []
    )


def _root(guide: Guide, group: tuple[ref[Any], ...], alive: bool) -> Root:
    task = group[0]()
    title = task.get_name() if task is not None else ""
    if len(group) > 1:
        title += f" and {len(group) - 1} more"
    reader = _task_reader(guide, group, alive)
    return Root("tasks", title, reader, len(group), resumes=alive)


def _unreadable() -> list[Place]:
    raise RuntimeError


def _task_reader(
    guide: Guide, group: tuple[ref[Any], ...], alive: bool
) -> Callable[[], list[Place]]:
    def read() -> list[Place]:
        places: list[Place] = []
        for weak_ref in group:
            places += _places_of(guide, weak_ref)
        for place in places:
            place.resumes = alive
        return places

    return read


def _places_of(guide: Guide, weak_ref: ref[Any]) -> list[Place]:
    task = weak_ref()
    if task is None or task.done():
        return []
    owner = RootOwner(task.get_name(), None, weak_ref)
    places = list(_await_chain(guide, task.get_coro(), owner))[::-1]
    title = f"a callback of task {owner.name}"
    places.append(unnamed_place("scheduled call", owner, title, callbacks_of(task)))
    for context in gc.get_referents(task):
        if type(context) is Context:
            title = f"task {owner.name}"
            values = list(context.values())
            places.append(_context_place(context, values, owner, title))
    return places


def _context_place(
    context: Any, values: list[Any], owner: RootOwner, title: str
) -> Place:
    names = [variable.name for variable in context]
    place = unnamed_place("context variable", owner, title, values)
    place.names = pairs(names, values)
    return place


def _await_chain(guide: Guide, awaited: Any, owner: RootOwner) -> Iterator[Place]:
    """The suspended frames of a task, from its coroutine to the innermost await."""
    for number, each in enumerate(awaits(awaited)):
        frame = frame_of(each)
        if frame is None:
            return
        if number >= MAX_FRAMES:
            yield unreadable_place("suspended frame", owner)
            return
        held = list(stored_in(each))
        running = frame.f_back is not None
        yield Place(
            "running frame" if running else "suspended frame",
            owner,
            held,
            _names_in(frame),
            is_user=runs_user_code(frame),
            frame=frame,
        )
        for greenlet in _greenlets(guide, held):
            suspended = greenlets.suspended_frame(greenlet)
            yield from stack_places(suspended, owner, "suspended frame")


def _names_in(frame: FrameType) -> Callable[[], Iterable[tuple[str, Any]]]:
    return lambda: variables_of(frame).items()


def _greenlets(guide: Guide, held: list[Any]) -> list[Any]:
    kind = guide.greenlet
    return [g for g in held if issubclass(type(g), kind)] if kind is not None else []
