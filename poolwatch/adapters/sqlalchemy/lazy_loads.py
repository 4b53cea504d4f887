"""Names the mapped attribute whose load has checked out a connection.

The stack of the checkout shows that an attribute was loaded, and the instruction of the
calling frame which one. Its class is named if only one mapped class has it.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import CodeType
from typing import Any

from poolwatch.diagnosis.references.attributes import class_dict, class_name
from poolwatch.stacks.capture import Pairs
from poolwatch.stacks.work_items import is_in

_DESCRIPTORS = "sqlalchemy/orm/attributes.py"
_MAX_NAMES = 256
_MAX_CODE = 100_000
"""Functions with more bytes of code are not read."""


def loaded_attribute(stack: Pairs) -> tuple[str, bool] | None:
    """The name, and whether it is a relationship; None if no attribute was loaded.

    The name is ``Order.customer`` or ``customer``, or unknown as with ``getattr``.
    """
    related = False
    for (code, _), (caller, lasti) in pairwise(stack):
        related = related or "LazyLoader" in code.co_qualname
        if code.co_name == "__get__" and is_in(code.co_filename, _DESCRIPTORS):
            name = _attribute_at(caller, lasti)
            return "an attribute" if name is None else _with_class(name), related
    return None


def _attribute_at(code: CodeType, lasti: int) -> str | None:
    """The attribute that the instruction reads."""
    known = _names.get((id(code), lasti))
    if known is not None and known[0] is code:
        return known[1]
    if len(_names) >= _MAX_NAMES:
        _names.clear()
    name = _read_attribute(code, lasti) if len(code.co_code) <= _MAX_CODE else None
    _names[id(code), lasti] = code, name
    return name


_names: dict[tuple[int, int], tuple[CodeType, str | None]] = {}
"""By the id of the code: hashing a code object would read all of it."""


def _read_attribute(code: CodeType, lasti: int) -> str | None:
    for instruction in dis.get_instructions(code):
        if instruction.offset == lasti:
            reads = instruction.opname in ("LOAD_ATTR", "LOAD_METHOD")
            return str(instruction.argval) if reads else None
    return None


def _with_class(name: str) -> str:
    owners = {kind for kind in _mapped_classes() if _maps(kind, name)}
    return f"{class_name(owners.pop())}.{name}" if len(owners) == 1 else name


def _maps(kind: type, name: str) -> bool:
    attribute = class_dict(kind).get(name)
    return class_name(type(attribute)) == "InstrumentedAttribute"


def _mapped_classes() -> Iterator[type]:
    mapper: Any = sys.modules.get("sqlalchemy.orm.mapper")
    for registry in list(getattr(mapper, "_mapper_registries", ())):
        for manager in list(registry._managers):
            yield manager.class_
