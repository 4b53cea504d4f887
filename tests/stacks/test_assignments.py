"""The line on which a variable got its value from a call."""

from __future__ import annotations

import pytest

from poolwatch.stacks.assignments import assigned_at

MAKERS = {"create_engine", "create_async_engine"}


def code_of(source: str):
    return compile(source, "db.py", "exec")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("\nengine = create_engine(url)\ninstrument(engine)", 2),
        ("engine = sqlalchemy.create_engine(url, pool_size=0)", 1),
        ("\n\nengine = create_engine(\n    make_url(),\n    pool_size=0,\n)\n", 3),
        ("engine = create_async_engine(*a, **k)", 1),
        ("engine: object = create_engine(url)", 1),
    ],
)
def test_it_is_found(source, line):
    frame = assigned_at(code_of(source), "engine", MAKERS)
    assert frame == ("db.py", line, "<module>")


@pytest.mark.parametrize(
    "source",
    [
        "engine = get_engine(url)",
        "engine = get(create_engine)",
        "engine = cache[url]",
        "engine = create_engine(url).engine",
        "engine = None\nengine = create_engine(url)",
        "if a:\n    engine = create_engine(a)\nelse:\n    engine = create_engine(b)",
        "for engine in engines: pass",
        "from db import engine",
        "other = create_engine(url)",
        "def f(engine): pass",
    ],
)
def test_what_is_not_sure_is_not_said(source):
    assert assigned_at(code_of(source), "engine", MAKERS) is None


def test_a_variable_of_a_function():
    source = "def main():\n    engine = create_engine(url)\n    instrument(engine)"
    (code,) = (each for each in code_of(source).co_consts if hasattr(each, "co_code"))
    assert assigned_at(code, "engine", MAKERS) == ("db.py", 2, "main")


def test_a_variable_of_a_function_that_is_also_unpacked():
    """One instruction stores two variables, from Python 3.13 on."""
    source = "def main():\n    engine = create_engine(url)\n    engine, other = both()"
    (code,) = (each for each in code_of(source).co_consts if hasattr(each, "co_code"))
    assert assigned_at(code, "engine", MAKERS) is None
