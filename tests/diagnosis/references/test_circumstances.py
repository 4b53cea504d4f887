"""The circumstances that a chain of references shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import local
from typing import Any

import fix_references
import pytest
from fix_references import Taken
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

taken = fix_references.taken
PING = text("SELECT 1")
kept: dict[str, Any] = {}


@pytest.fixture
def engine(taken: Taken) -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    taken.watch(engine.pool)
    yield engine
    kept.clear()


def seen(taken: Taken) -> list[str]:
    return [each.kind for each in taken.path().circumstances]


def test_a_plain_variable_shows_nothing(taken: Taken, engine: Engine) -> None:
    kept["connection"] = engine.connect()
    assert seen(taken) == []


def test_scoped_session(taken: Taken, engine: Engine) -> None:
    kept["db"] = scoped_session(sessionmaker(engine))
    kept["db"].execute(PING)
    assert seen(taken) == ["scoped session"]


def test_scoped_session_with_a_scope_function(taken: Taken, engine: Engine) -> None:
    kept["db"] = scoped_session(sessionmaker(engine), scopefunc=lambda: 1)
    kept["db"].execute(PING)
    assert seen(taken) == ["scoped session"]


def test_own_thread_local(taken: Taken, engine: Engine) -> None:
    kept["here"] = here = local()
    here.connection = engine.connect()
    del here
    assert seen(taken) == ["thread-local"]


def rows(engine: Engine) -> Iterator[Any]:
    with engine.connect() as connection:
        yield from connection.execute(PING)


def test_a_generator_and_where_it_stands(taken: Taken, engine: Engine) -> None:
    kept["rows"] = stream = rows(engine)
    next(stream)
    del stream
    (found,) = taken.path().circumstances
    assert (found.kind, found.name) == ("generator", "contextlib.closing()")
    assert found.where is not None
    assert found.where.function == "rows"


def test_an_exit_stack(taken: Taken, engine: Engine) -> None:
    kept["stack"] = stack = ExitStack()
    stack.enter_context(engine.connect())
    del stack
    assert seen(taken) == ["exit stack"]


def test_an_exit_stack_of_a_request(taken: Taken, engine: Engine) -> None:
    @contextmanager
    def get_db() -> Iterator[Any]:
        with engine.connect() as connection:
            yield connection

    stack = ExitStack()
    stack.enter_context(get_db())
    kept["scope"] = {"type": "http", "fastapi_inner_astack": stack}
    del stack
    assert seen(taken) == ["request", "generator"]


def test_a_session_on_a_connection(taken: Taken, engine: Engine) -> None:
    connection = engine.connect()
    kept["session"] = Session(bind=connection)
    del connection
    assert seen(taken) == ["session on connection"]


def test_a_session_beside_its_connection(taken: Taken, engine: Engine) -> None:
    class Repository:
        def __init__(self) -> None:
            self.connection = engine.connect()
            self.session = Session(bind=self.connection)

    kept["repository"] = Repository()
    assert seen(taken) == ["session on connection"]


def test_a_session_beside_another_connection(taken: Taken, engine: Engine) -> None:
    class Repository:
        def __init__(self) -> None:
            self.connection = engine.connect()
            self.session = Session(bind=engine)

    kept["repository"] = Repository()
    assert seen(taken) == []


class Trap:
    """An object whose code must not run."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(name)

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = None  # type: ignore[assignment]


def test_objects_beside_the_connection_are_not_called(
    taken: Taken, engine: Engine
) -> None:
    class Repository:
        def __init__(self) -> None:
            self.trap = Trap()
            self.connection = engine.connect()

    kept["repository"] = Repository()
    assert seen(taken) == []
