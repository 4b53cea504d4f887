"""Two ways to put a method of ours in place of a library's, and to take it off again.

- ``Patches`` replaces a method on its class. Other objects of the class pay for one
  look-up in a dict. An object is in no cycle with its hooks, as it would be with a
  wrapper on the instance: it is freed when its last reference goes.
- ``subclass`` makes a class for one object or a few, which become its instances: for
  objects with ``__slots__``. (Any other object would get slow: CPython 3.11 finds the
  attributes of an object quickly only as long as it has the class it was made with.)

SQLAlchemy's pools are patched on the instance (``Wrapped``).
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any
from weakref import ref

Method = Callable[..., Any]
Stand = Callable[[Method, Callable[[int], Any]], Method]
"""Makes the stand-in for a method: see Patches.hook()."""
_MARK = "_poolwatch"


# -- on a class ------------------------------------------------------------------------


class Patches:
    """The methods that one adapter has replaced on classes."""

    def __init__(self) -> None:
        self._patches: dict[tuple[type, str], _Patch] = {}

    def put(self, kind: type, name: str, make: Callable[[Method], Method]) -> None:
        """Replace a method that ``kind`` itself defines by ``make(method)``.

        A method that is replaced already is left as it is.
        """
        if (kind, name) not in self._patches:
            below = kind.__dict__[name]
            patch = _Patch(kind, name, below, make(below))
            patch.for_every = True
            self._patches[kind, name] = patch

    def hook(self, thing: Any, hooks: Any, **makers: Stand) -> None:
        """Replace methods of the class of ``thing``, and let ``hooks`` apply to it.

        A maker gets the method, and the function that finds the hooks of an object by
        its ``id()``: None for an object without hooks. The method is replaced where it
        is defined. So a subclass that calls the method of its base is hooked once. A
        method that the class does not have is left out.
        """
        for name, make in makers.items():
            kinds = (each for each in type(thing).__mro__ if name in each.__dict__)
            kind = next(kinds, None)
            if kind is None:
                continue
            patch = self._patches.get((kind, name))
            if patch is None or not patch.is_there():
                below, hooked = kind.__dict__[name], dict[int, Any]()
                ours = wraps(below)(make(below, hooked.get))
                patch = self._patches[kind, name] = _Patch(kind, name, below, ours)
                patch.hooked = hooked
            patch.hooked[id(thing)] = hooks

    def unhook(self, number: int) -> None:
        """Forget the object with this ``id()``. It may run in a finalizer: no lock."""
        for patch in list(self._patches.values()):
            patch.hooked.pop(number, None)

    def tidy(self) -> None:
        """Restore the methods that no object needs any more, where ours is outermost.

        A method that was replaced for every object stays: see undo().
        """
        for key, patch in list(self._patches.items()):
            if not patch.hooked and not patch.for_every:
                patch.undo()
                del self._patches[key]

    def undo(self) -> None:
        """Restore all methods. One that another tool has wrapped since stays."""
        while self._patches:
            self._patches.popitem()[1].undo()


class _Patch:
    """One method of one class."""

    def __init__(self, kind: type, name: str, below: Method, ours: Method) -> None:
        self._kind = kind
        self._name = name
        self._below = below
        self._ours = ours
        self.hooked: dict[int, Any] = {}
        """The hooks, by the ``id()`` of the object."""
        self.for_every = False
        """It applies to every object of the class."""
        setattr(kind, name, ours)

    def is_there(self) -> bool:
        """Whether our method is still called: nobody has restored the one below."""
        current = self._kind.__dict__.get(self._name)
        while current is not None and current is not self._ours:
            current = getattr(current, "__wrapped__", None)
        return current is not None

    def undo(self) -> None:
        """Restore the method. One that another tool has wrapped passes through."""
        self.hooked.clear()
        if self._kind.__dict__.get(self._name) is self._ours:
            setattr(self._kind, self._name, self._below)


def where_defined(kind: type, name: str) -> type | None:
    """The class that a method of ``kind`` comes from; None if it is no plain function,
    but another tool's object in its place.
    """
    where = next((each for each in kind.__mro__ if name in each.__dict__), None)
    if where is None or not isinstance(where.__dict__[name], FunctionType):
        return None
    return where


# -- for one object --------------------------------------------------------------------


def subclass(base: Any, **methods: Method) -> type:
    """A subclass that looks like ``base``; objects of ``base`` can become instances.

    A method that ``base`` does not have is left out.
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


def original_class(kind: type) -> type:
    """The class that the application knows: ``kind``, or what it was made from."""
    return next(each for each in kind.__mro__ if _MARK not in vars(each))


def restore_class(thing: Any, ours: type) -> None:
    """Give ``thing`` its class back, if it is an instance of that class of ours."""
    if type(thing) is ours:
        thing.__class__ = original_class(ours)


# -- on an instance --------------------------------------------------------------------


class Wrapped:
    """A pool whose methods stand under wrappers of ours.

    Each wrapper has the name of the method in whose place it stands.
    """

    def __init__(self, pool: Any, wrappers: list[Any]) -> None:
        self.pool = ref(pool)
        self.end: Any = None
        """What runs when the pool is gone, if anything: a ``weakref.finalize``."""
        self._ours: list[tuple[str, Callable[[], Any]]] = [
            (each.__name__, ref(each)) for each in wrappers
        ]
        for each in wrappers:
            around = pool.__dict__.get(each.__name__)
            if around is not None:
                each.around = around

    def wrap(self, wrappers: list[Any]) -> None:
        """Put them in their places."""
        pool = self.pool()
        for each in wrappers:
            setattr(pool, each.__name__, each)

    def unwrap(self) -> None:
        """Take ours off where it is the outermost; below another's it stays."""
        if self.end is not None:
            self.end.detach()
        pool = self.pool()
        for name, reference in self._ours:
            ours: Any = reference()
            if pool is None or pool.__dict__.get(name) is not ours or not ours:
                continue
            around = getattr(ours, "around", None)
            if around is None:
                delattr(pool, name)
            else:  # somebody had wrapped it before us
                setattr(pool, name, around)


def unbound(pool: Any, name: str) -> Callable[..., Any]:
    """The method as a function of the pool, so that no wrapper refers to its pool."""
    theirs: Any = pool.__dict__.get(name)
    if theirs is not None:  # somebody has wrapped it before us
        return lambda _, *args, **kwargs: theirs(*args, **kwargs)
    method: Callable[..., Any] = getattr(type(pool), name)
    return method


# -- the signature of a method ---------------------------------------------------------


def with_parameters_of(below: Any, ours: Callable[..., None]) -> Any:
    """Return an ``__init__`` that calls ``ours``, with the parameters of ``below``.

    ``*args, **kwargs`` will not do. SQLAlchemy reads the names from the code object of
    ``Engine.__init__`` (``get_cls_kwargs`` in ``sqlalchemy.util.langhelpers``) to tell
    which arguments of ``create_engine()`` are meant for the engine. Tools that inject
    dependencies read the signature of a pool.
    """
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
