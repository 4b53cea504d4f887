"""Wraps methods of a library, and restores them.

- ``Patches`` wraps a method on its class. Objects that are not hooked pay for one dict
  look-up. There is no reference cycle between an object and its hooks, as a wrapper on
  the instance would make: the object is freed with its last reference.
- ``subclass`` makes a class with wrapped methods for one or a few objects, which become
  its instances. Used for objects with ``__slots__``. (Other objects would get slow:
  CPython 3.11 finds their attributes quickly only while they keep the class they were
  created with.)

SQLAlchemy's pools are patched on the instance (``Wrapped``).
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable
from functools import wraps
from types import FunctionType, SimpleNamespace
from typing import Any
from weakref import ref

Method = Callable[..., Any]
WrapperFactory = Callable[[Method, Callable[[int], Any]], Method]
"""Makes the wrapper of a method: see Patches.hook()."""
_MARK = "_poolwatch"


# -- on a class ------------------------------------------------------------------------


class Patches:
    """The methods that one adapter has wrapped on classes."""

    def __init__(self) -> None:
        self._patches: dict[tuple[type, str], _Patch] = {}
        self._covered: list[_Patch] = []
        """Patches that another tool has replaced without calling what was below."""

    def replace(self, cls: type, name: str, make: Callable[[Method], Method]) -> None:
        """Replace a method that ``cls`` itself defines by ``make(method)``.

        An already replaced method is left as it is.
        """
        if (cls, name) not in self._patches:
            original = cls.__dict__[name]
            patch = _Patch(cls, name, original, make(original))
            patch.for_all = True
            self._patches[cls, name] = patch

    def hook(self, target: Any, hooks: Any, **factories: WrapperFactory) -> None:
        """Wrap methods of the class of ``target``, and apply ``hooks`` to ``target``.

        A factory gets the method, and a function that returns the hooks of an object by
        its ``id()``, None for an object without hooks. The method is wrapped on the
        class that defines it, so a subclass that calls the method of its base is hooked
        once. A method that the class lacks is skipped.
        """
        for name, make in factories.items():
            classes = (each for each in type(target).__mro__ if name in each.__dict__)
            cls = next(classes, None)
            if cls is None:
                continue
            patch = self._patches.get((cls, name))
            if patch is None or not patch.is_active():
                if patch is not None:
                    self._covered.append(patch)
                original, hooked = cls.__dict__[name], dict[int, Any]()
                wrapper = wraps(original)(make(original, hooked.get))
                patch = self._patches[cls, name] = _Patch(cls, name, original, wrapper)
                patch.hooked = hooked
            patch.hooked[id(target)] = hooks

    def unhook(self, object_id: int) -> None:
        """Drop the hooks of an object by its ``id()``. No lock: may be a finalizer."""
        for patch in [*self._patches.values(), *self._covered]:
            patch.hooked.pop(object_id, None)

    def restore_unused(self) -> None:
        """Restore methods without hooked objects, unless another tool has wrapped them.

        Methods that were replaced for all objects stay: see undo().
        """
        for key, patch in list(self._patches.items()):
            if not patch.hooked and not patch.for_all:
                patch.undo()
                del self._patches[key]

    def undo(self) -> None:
        """Restore all methods, except those that another tool has wrapped since."""
        while self._patches:
            self._patches.popitem()[1].undo()


class _Patch:
    """One method of one class."""

    def __init__(self, cls: type, name: str, original: Method, wrapper: Method) -> None:
        self._cls = cls
        self._name = name
        self._original = original
        self._wrapper = wrapper
        self.hooked: dict[int, Any] = {}
        """The hooks, by the ``id()`` of the object."""
        self.for_all = False
        """The patch applies to all objects of the class."""
        setattr(cls, name, wrapper)

    def is_active(self) -> bool:
        """Whether calls still reach the wrapper, directly or through another tool's."""
        current = self._cls.__dict__.get(self._name)
        while current is not None and current is not self._wrapper:
            current = getattr(current, "__wrapped__", None)
        return current is not None

    def undo(self) -> None:
        """Restore the method, unless another tool has wrapped it: then calls pass
        through.
        """
        self.hooked.clear()
        if self._cls.__dict__.get(self._name) is self._wrapper:
            setattr(self._cls, self._name, self._original)


# -- for one object --------------------------------------------------------------------


def subclass(base: Any, **methods: Method) -> type:
    """Make a subclass that looks like ``base``; its instances can change to it.

    A method that ``base`` lacks is skipped.
    """
    stand_ins = {
        name: wraps(getattr(base, name))(method)
        for name, method in methods.items()
        if hasattr(base, name)
    }
    made: type = type(base)(
        base.__name__,
        (base,),
        {
            **stand_ins,
            _MARK: True,
            "__slots__": (),
            "__doc__": base.__doc__,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
        },
    )
    return made


def original_class(cls: type) -> type:
    """The class as the application knows it: ``cls``, or the base of our subclass."""
    return next(each for each in cls.__mro__ if _MARK not in vars(each))


def restore_class(target: Any, made: type) -> None:
    """Restore the class of ``target``, if subclass() has made its current one."""
    if type(target) is made:
        target.__class__ = original_class(made)


# -- on an instance --------------------------------------------------------------------


class Wrapped:
    """A pool or connection with wrappers on the instance.

    Each wrapper has the name of the method that it wraps.
    """

    def __init__(self, pool: Any, wrappers: list[Any]) -> None:
        self.pool = ref(pool)
        self.end: Any = None
        """A ``weakref.finalize`` that runs when the pool is collected, if any."""
        self._wrappers: list[tuple[str, Callable[[], Any]]] = [
            (each.__name__, ref(each)) for each in wrappers
        ]
        for each in wrappers:
            previous = pool.__dict__.get(each.__name__)
            if previous is not None:
                each.previous = previous

    def wrap(self, wrappers: list[Any]) -> None:
        """Set the wrappers on the instance."""
        pool = self.pool()
        for each in wrappers:
            setattr(pool, each.__name__, each)

    def unwrap(self) -> None:
        """Remove the wrappers, except where another tool has wrapped them."""
        if self.end is not None:
            self.end.detach()
        pool = self.pool()
        for name, reference in self._wrappers:
            wrapper: Any = reference()
            if pool is None or pool.__dict__.get(name) is not wrapper or not wrapper:
                continue
            previous = getattr(wrapper, "previous", None)
            if previous is None:
                delattr(pool, name)
            else:  # another tool had wrapped it before
                setattr(pool, name, previous)


def below(pool: Any, name: str) -> Any:
    """Where a wrapper of the method ``name`` finds what it calls, as a function of the
    pool: the pool's class or, if another tool has wrapped the method on the instance, a
    namespace.
    """
    existing: Any = pool.__dict__.get(name)
    if existing is None:
        return type(pool)
    method = lambda _, *args, **kwargs: existing(*args, **kwargs)  # noqa: E731 - one line
    return SimpleNamespace(**{name: method})


def unbound(pool: Any, name: str) -> Callable[..., Any]:
    """The method as a function of the pool, so that no wrapper refers to its pool."""
    method: Callable[..., Any] = getattr(below(pool, name), name)
    return method


def function_of_pool(method: Any) -> Callable[[Any], Any]:
    """A method found on a class as a function of the pool. A Mock is no descriptor: it
    is called without the pool.
    """
    return method if hasattr(type(method), "__get__") else lambda _: method()


def takes_arguments(method: Any) -> bool:
    """Whether a method written in Python has parameters beyond ``self``."""
    code = getattr(method, "__code__", None)
    if code is None:
        return False
    variadic = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    return bool(variadic or code.co_argcount + code.co_kwonlyargcount > 1)


# -- the signature of a method ---------------------------------------------------------


def with_parameters_of(original: Any, wrapper: Callable[..., None]) -> Any:
    """Make an ``__init__`` that calls ``wrapper``, with the parameters of the original.

    ``*args, **kwargs`` is not enough. SQLAlchemy reads the names from the code object
    of ``Engine.__init__`` (``get_cls_kwargs`` in ``sqlalchemy.util.langhelpers``) to
    find out which arguments of ``create_engine()`` belong to the engine. Dependency
    injection tools read the signature of a pool.
    """
    source = _source(original) if isinstance(original, FunctionType) else None
    if source is None:  # in C, an object that can be called, or odd names

        def plain(self: Any, *args: Any, **kwargs: Any) -> None:
            wrapper(self, *args, **kwargs)

        return wraps(original)(plain)
    scope: dict[str, Any] = {_TARGET: wrapper}
    exec(compile(source, __file__, "exec"), scope)  # noqa: S102 - names, nothing else
    init = scope["__init__"]
    init.__defaults__ = original.__defaults__
    init.__kwdefaults__ = original.__kwdefaults__
    return wraps(original)(init)


_TARGET = "_poolwatch_init"


def _source(original: FunctionType) -> str | None:
    """Source of a function with the parameters of ``original``; None if the names of
    some are not valid identifiers.
    """
    code = original.__code__
    names = list(code.co_varnames)
    positional = names[: code.co_argcount]
    keyword_only = names[len(positional) : len(positional) + code.co_kwonlyargcount]
    rest = names[len(positional) + len(keyword_only) :]
    parameters = list(positional)
    if code.co_posonlyargcount:
        parameters.insert(code.co_posonlyargcount, "/")
    arguments = list(positional)
    if code.co_flags & inspect.CO_VARARGS:
        parameters.append(f"*{rest[0]}")
        arguments.append(f"*{rest.pop(0)}")
    elif keyword_only:
        parameters.append("*")
    parameters += keyword_only
    arguments += [f"{name}={name}" for name in keyword_only]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        parameters.append(f"**{rest[0]}")
        arguments.append(f"**{rest[0]}")
    named = [each.strip("*") for each in parameters if each.strip("*/")]
    if not positional or not all(map(_is_a_name, named)):
        return None
    call = f"{_TARGET}({', '.join(arguments)})"
    return f"def __init__({', '.join(parameters)}):\n    {call}\n"


def _is_a_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text) and text != _TARGET
