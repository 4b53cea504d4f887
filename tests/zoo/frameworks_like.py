"""Faults in what web frameworks make people write."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from zoo.app import PING, QUERY
from zoo.registry import fault


def get_db(engine: Engine) -> Iterator[Session]:
    """The yield dependency of every tutorial."""
    db = Session(engine)
    try:
        yield db
    finally:
        db.close()


def nightly(engine: Engine) -> None:
    db = next(get_db(engine))  # the generator ends here, and closes the session
    db.execute(PING)  # site: dependency_by_hand


@fault("leaked.collected", at="dependency_by_hand", long_after=30)
def dependency_by_hand(zoo: Any) -> None:
    """db = next(get_db()) outside a request: closed at once, then opened again."""
    nightly(zoo.engine)
    gc.collect()
    zoo.go_on()


_dependencies: list[Any] = []


def solve(engine: Engine) -> Session:
    dependency = get_db(engine)
    _dependencies.append(dependency)
    return next(dependency)


def read_items(engine: Engine) -> None:
    db = solve(engine)
    db.execute(PING)  # site: dependency_never_exhausted


@fault("leaked.abandoned")
def dependency_never_exhausted(zoo: Any) -> None:
    """A dependency solver that forgets to exhaust its generators."""
    read_items(zoo.engine)
    zoo.go_on()


@contextmanager
def session_scope(engine: Engine) -> Iterator[Session]:
    session = Session(engine)
    try:
        yield session
        session.commit()
    finally:
        session.close()


class Request:
    def __init__(self, path: str) -> None:
        self.path = path
        self.state: dict[str, Any] = {}


_failed: list[Request] = []


def endpoint(request: Request) -> None:
    request.state["db"].execute(PING)  # site: scope_entered_by_hand, only_on_success
    if request.path == "/broken":
        raise RuntimeError(request.path)


@fault("leaked.abandoned", at="scope_entered_by_hand")
def scope_entered_by_hand(zoo: Any) -> None:
    """before_request enters the scope; no after_request ever leaves it."""

    def before(request: Request) -> None:
        request.state["scope"] = scope = session_scope(zoo.engine)
        request.state["db"] = scope.__enter__()

    request = Request("/")
    before(request)
    endpoint(request)
    _failed.append(request)
    del request
    zoo.go_on()


@fault("leaked.abandoned", at="only_on_success")
def closed_only_on_success(zoo: Any) -> None:
    """A middleware that closes the session only if nothing was raised."""

    def middleware(request: Request) -> None:
        request.state["db"] = Session(zoo.engine)
        try:
            endpoint(request)
            request.state["db"].close()
        except RuntimeError:
            _failed.append(request)  # for the error page of the developers

    for path in ("/", "/broken", "/"):
        middleware(Request(path))
    zoo.go_on()


_request_db: ContextVar[Session] = ContextVar("request_db")


def begin_request(engine: Engine) -> None:
    _request_db.set(Session(engine))


def load_user() -> None:
    _request_db.get().execute(PING)  # site: context_var


@fault("leaked.abandoned", at="context_var")
def session_in_a_context_var(zoo: Any) -> None:
    """The session of the request is in a ContextVar, and stays in it."""
    begin_request(zoo.engine)
    load_user()
    zoo.go_on()


def events(db: Session) -> Iterator[Any]:
    while True:
        yield db.execute(PING).scalar()  # site: server_sent_events
        time.sleep(3)


@fault("held_across_io", also="long_hold")
def server_sent_events(zoo: Any) -> None:
    """Each browser tab with a stream of events parks a connection."""
    with Session(zoo.engine) as db:
        for _ in events(db):
            pass


def current_user(db: Session) -> None:
    db.execute(PING)  # site: first_dependency


def permissions(db: Session) -> None:
    while True:
        db.execute(QUERY)  # site: second_dependency


@fault("nested", at="first_dependency second_dependency", long_after=30)
def two_dependencies(zoo: Any) -> None:
    """Two dependencies of one request, each with a session of its own."""
    for one in get_db(zoo.engine):
        for other in get_db(zoo.engine):
            current_user(one)
            permissions(other)
