"""Paths that the running code names: ``self.container.uow.session.commit()``.

A function may have its connection many attributes away from a variable. It is in use if
the code that is still to run reads each of these attributes: the rest of the function,
and the methods and functions that it calls. A cache that nobody reads is not.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any

from poolwatch.diagnosis.references.attributes import (
    attributes_of,
    bases_of,
    class_dict,
    isinstance_of,
)
from poolwatch.diagnosis.references.follow import CONTAINERS, is_of_sqlalchemy
from poolwatch.diagnosis.references.liveness import reachable
from poolwatch.diagnosis.references.places import Place
from poolwatch.diagnosis.references.words import attribute_name, entry_name

_READS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_CONST")
_ENDS_WITH_BLOCK = "WITH_EXCEPT_START"
_IMPLICIT = frozenset({"__exit__", "__aexit__", "close", "aclose"})
"""Methods that a ``with`` block calls at its end, also over contextlib.closing()."""


def names_path(place: Place, chain: Sequence[Any]) -> bool:
    """Whether code that is still to run in a place names each step of a chain.

    Reading code takes long, for a step of a search: most chains are left out before,
    by a step without a name or with one that no code of the place has.
    """
    steps = list(_steps(chain))
    if place.code is None or any(name is None for _, name in steps):
        return False
    names: set[str] = set()
    for kind, name in steps:
        if not names:
            names |= _names_from(place)
        _add_methods(kind, names)
        if name not in names:
            return False
    return True


def _steps(chain: Sequence[Any]) -> Iterator[tuple[type, str | None]]:
    """The types of the objects on a chain, and the name of each one's reference."""
    for node, following in pairwise(chain):
        if is_of_sqlalchemy(type(node)):
            return
        known = attributes_of(node) is following
        yield type(node), "" if known else _step(node, following)


def _names_from(place: Place) -> set[str]:
    assert place.code is not None
    to_come, called = _names_to_come(place.code, place.lasti)
    names = {"", *to_come}
    for name in called:
        function = dict.get(place.globals, name)
        if type(function) is FunctionType:
            names |= _names_in(function.__code__)
    return names


def _step(node: Any, following: Any) -> str | None:
    """The name or key of a reference; None if it has none."""
    if isinstance_of(node, (dict,)):
        return entry_name(node, following)
    return None if isinstance_of(node, CONTAINERS) else attribute_name(node, following)


def _add_methods(kind: type, names: set[str]) -> None:
    """Add the names in the methods of a class that code with ``names`` may call."""
    methods = [
        (name, getattr(member, "fget", member))
        for base in bases_of(kind)
        for name, member in class_dict(base).items()
        if type(member) in (FunctionType, property)
    ]
    while called := [each for each in methods if each[0] in names]:
        methods = [each for each in methods if each[0] not in names]
        for _, function in called:
            if type(function) is FunctionType:
                names |= _names_in(function.__code__)


@lru_cache(maxsize=64)
def _names_to_come(code: CodeType, lasti: int) -> tuple[frozenset[str], frozenset[str]]:
    """What a function at ``lasti`` is still to read, and the globals among that.

    At the end of a ``with`` block, methods run of objects that it has read before.
    """
    to_come = list(reachable(code, lasti))
    called = {each.argval for each in to_come if each.opname == "LOAD_GLOBAL"}
    names = set(_names_of(to_come))
    if any(each.opname == _ENDS_WITH_BLOCK for each in to_come):
        names |= _names_in(code) | _IMPLICIT
    return frozenset(names), frozenset(called)


@lru_cache(maxsize=256)
def _names_in(code: CodeType) -> frozenset[str]:
    """The attributes and strings that a function reads, with functions inside it."""
    names = set(_names_of(dis.get_instructions(code)))
    for each in code.co_consts:
        if type(each) is CodeType:
            names |= _names_in(each)
    return frozenset(names)


def _names_of(instructions: Iterable[dis.Instruction]) -> Iterator[str]:
    for each in instructions:
        if each.opname.startswith(_READS) and type(each.argval) is str:
            yield each.argval
