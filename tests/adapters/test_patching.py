"""An ``__init__`` of ours takes what the one below takes, and says so."""

from __future__ import annotations

import inspect

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import get_cls_kwargs

from poolwatch.adapters.patching import with_parameters_of
from poolwatch.agent.instrument import agent


def followed_by(below, done):
    def ours(self, *args, **kwargs):
        below(self, *args, **kwargs)
        done(self)

    return with_parameters_of(below, ours)


class Below:
    """Ways to write the parameters, and what to call each with."""

    def none(self):
        self.got = ()

    def usual(self, a, b=2, *, c=3, d):
        self.got = a, b, c, d

    def by_place_only(self, a, b=2, /, c=3):
        self.got = a, b, c

    def any(self, *args, **kwargs):
        self.got = args, kwargs

    def all(self, a, /, b, *rest, c=3, **more):
        self.got = a, b, rest, c, more


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("none", (), {}),
        ("usual", (1,), {"d": 4}),
        ("usual", (), {"a": 1, "b": 5, "c": 6, "d": 4}),
        ("by_place_only", (1,), {}),
        ("by_place_only", (1, 5), {"c": 6}),
        ("any", (1, 2), {"self_": 3}),
        ("all", (1, 2, 3, 4), {"c": 5, "d": 6}),
        ("all", (1,), {"b": 2, "a": 9}),
    ],
)
def test_as_below(name, args, kwargs):
    """Arguments arrive; the names are in the code object and in the signature."""
    below, done = getattr(Below, name), []
    ours = followed_by(below, done.append)
    expected, got = Below(), Below()
    below(expected, *args, **kwargs)
    ours(got, *args, **kwargs)
    assert got.got == expected.got
    assert done == [got]
    assert inspect.signature(ours) == inspect.signature(below)
    flags = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
    for code in (ours.__code__, below.__code__):
        assert code.co_flags & flags == below.__code__.co_flags & flags
        count = code.co_argcount + code.co_kwonlyargcount
        assert code.co_varnames[:count] == below.__code__.co_varnames[:count]


def test_what_below_does_not_take():
    """The error of a wrong call is Python's own."""
    done = []
    with pytest.raises(TypeError, match="unexpected keyword argument 'e'"):
        followed_by(Below.usual, done.append)(Below(), 1, d=4, e=5)
    assert done == []


def test_what_fails_below_is_not_followed():
    """The error is the one from below, and nothing comes after it."""

    def below(self):
        raise ValueError("no")

    done = []
    with pytest.raises(ValueError, match="no"):
        followed_by(below, done.append)(Below())
    assert done == []


def test_something_else_that_can_be_called():
    """In C, or in somebody's wrapper."""
    done = []

    class Kept(list): ...

    Kept.__init__ = followed_by(list.__init__, done.append)
    kept = Kept([1, 2])
    assert kept == [1, 2]
    assert done == [kept]


ENGINES = {
    "echo": False,
    "execution_options": {"isolation_level": "SERIALIZABLE"},
    "hide_parameters": True,
    "logging_name": "shop",
    "query_cache_size": 7,
}


@pytest.mark.parametrize("make", [create_engine, create_async_engine])
def test_what_create_engine_hands_on(instrument, make):
    """While every engine is watched, the engine's own arguments still reach it."""
    known = get_cls_kwargs(Engine)
    assert known >= ENGINES.keys()
    instrument()
    assert get_cls_kwargs(Engine) == known
    url = "sqlite:///x.db" if make is create_engine else "sqlite+aiosqlite:///x.db"
    engine = make(url, **ENGINES)
    made = getattr(engine, "sync_engine", engine)
    assert made.logging_name == "shop"
    assert made.hide_parameters
    assert made.get_execution_options()["isolation_level"] == "SERIALIZABLE"
    assert agent.pools.id_of(engine) is not None
    with pytest.raises(TypeError, match=r"Invalid argument\(s\) 'ecko' sent to create"):
        make(url, ecko=True)
