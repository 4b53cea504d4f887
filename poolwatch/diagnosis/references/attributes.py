"""Attributes of objects and classes, read without running the application's code.

A class may have a metaclass, and an object properties or a ``__getattr__``: everything
here reads what is stored, through descriptors of ``type`` and ``object``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

# Taken from ``type`` itself, so that no metaclass can override them.
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


def attributes_of(node: Any) -> dict[str, Any] | None:
    """The dict of an instance's attributes, read without a call of its class."""
    for base in bases_of(type(node)):
        member = class_dict(base).get("__dict__")
        if type(member) is GetSetDescriptorType:
            found = member.__get__(node)
            return found if type(found) is dict else None
    return None


def attribute_of(node: Any, name: str) -> Any:
    """An attribute as it is stored in an object, without a call of its class.

    None if there is none, or if the class has a property or the like of that name.
    """
    for base in bases_of(type(node)):
        member: Any = class_dict(base).get(name)
        if type(member) in (MemberDescriptorType, GetSetDescriptorType):
            break
        if member is not None:
            return (attributes_of(node) or {}).get(name)
    try:
        return object.__getattribute__(node, name)
    except AttributeError:
        return None


def isinstance_of(node: Any, kinds: tuple[type, ...]) -> bool:
    """Like ``isinstance``, without running code of the object, which may be a proxy."""
    return issubclass(type(node), kinds)
