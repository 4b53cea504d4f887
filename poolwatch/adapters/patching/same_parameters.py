"""An ``__init__`` of ours that takes, and says it takes, what the one below it takes.

SQLAlchemy reads the names from the code object of ``Engine.__init__`` to tell which
arguments of ``create_engine()`` are meant for the engine (``get_cls_kwargs`` in
``sqlalchemy.util.langhelpers``): behind ``*args, **kwargs``, ``echo`` and
``execution_options`` would be unknown to it. Who inspects another library's pools, to
inject them say, finds their signature as it was, too.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any


def with_parameters_of(below: Any, ours: Callable[..., None]) -> Any:
    """Return an ``__init__`` that calls ``ours``, with the parameters of ``below``."""
    source = _source(below) if isinstance(below, FunctionType) else None
    if source is None:  # in C, an object that can be called, or odd names

        def plain(self: Any, *args: Any, **kwargs: Any) -> None:
            ours(self, *args, **kwargs)

        return wraps(below)(plain)
    scope: dict[str, Any] = {_OURS: ours}
    exec(compile(source, __file__, "exec"), scope)  # noqa: S102 - names, nothing else
    init = scope["__init__"]
    init.__defaults__ = below.__defaults__
    init.__kwdefaults__ = below.__kwdefaults__
    return wraps(below)(init)


_OURS = "_poolwatch_init"


def _source(below: FunctionType) -> str | None:
    """A function with the parameters of ``below``, as text; None if some are odd."""
    code = below.__code__
    names = list(code.co_varnames)
    by_place = names[: code.co_argcount]
    by_name = names[len(by_place) : len(by_place) + code.co_kwonlyargcount]
    rest = names[len(by_place) + len(by_name) :]
    takes = list(by_place)
    if code.co_posonlyargcount:
        takes.insert(code.co_posonlyargcount, "/")
    gives = list(by_place)
    if code.co_flags & inspect.CO_VARARGS:
        takes.append(f"*{rest[0]}")
        gives.append(f"*{rest.pop(0)}")
    elif by_name:
        takes.append("*")
    takes += by_name
    gives += [f"{name}={name}" for name in by_name]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        takes.append(f"**{rest[0]}")
        gives.append(f"**{rest[0]}")
    named = [each.strip("*") for each in takes if each.strip("*/")]
    if not by_place or not all(map(_is_a_name, named)):
        return None
    return f"def __init__({', '.join(takes)}):\n    {_OURS}({', '.join(gives)})\n"


def _is_a_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text) and text != _OURS
