"""Futures and tasks: what they refer to, and what they call when they are done."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextvars import Context
from types import FunctionType, GetSetDescriptorType
from typing import Any

from poolwatch.diagnosis.references.attributes import (
    attribute_of,
    attributes_of,
    bases_of,
    class_dict,
    class_name,
    module_of,
)
from poolwatch.stacks.code_owner import library_of


def callbacks_of(future: Any) -> list[Any]:
    """The callbacks of a future or task, without their contexts."""
    known: Any = None
    for base in bases_of(type(future)):
        member: Any = class_dict(base).get("_callbacks")
        if type(member) is GetSetDescriptorType:  # of asyncio, in C
            known = member.__get__(future)
    attributes = attributes_of(future) or {}
    found = (known, attributes.get("_callbacks"), attributes.get("_done_callbacks"))
    # by type first: the truth value of another object is that of its own code
    pairs = next((each for each in found if type(each) is list and each), [])
    return [each[0] if type(each) is tuple else each for each in pairs]


def task_referents(task: Any) -> Sequence[Any]:
    """The referents of a task that is done; any other task is a root of its own."""
    return gc.get_referents(task) if task.done() else ()


def future_referents(future: Any) -> Sequence[Any]:
    """The callbacks of a future, its result and its exception."""
    parts = list((attributes_of(future) or {}).values()) or gc.get_referents(future)
    others = [each for each in parts if not _are_callbacks(each)]
    return [*callbacks_of(future), *others]


def _are_callbacks(part: Any) -> bool:
    """Whether it is a list of callbacks, or the context of one."""
    if type(part) is list and part:
        first = part[0]
        return type(first) is tuple and bool(first) and type(first[-1]) is Context
    return type(part) is Context


def future_of_work_item(variables: Mapping[str, Any]) -> Any:
    """The future of a work item, by the variables of the function that runs it."""
    item = variables.get("self")
    if class_name(type(item)) == "_WorkItem":
        return attribute_of(item, "future")
    return variables.get("future")


def is_of_asyncio(function: Any) -> bool:
    """Whether it is a function of asyncio itself, which joins two futures, say."""
    code = function.__code__ if type(function) is FunctionType else None
    return code is not None and library_of(code.co_filename) == "asyncio"


def is_future(kind: type) -> bool:
    """Whether it is a class of futures or tasks of the standard library."""
    named = class_name(kind) in ("Future", "Task")
    return named and module_of(kind).startswith(("_asyncio", "asyncio", "concurrent"))
