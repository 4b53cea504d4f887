"""Innocents with the ORM's sessions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event, select, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from zoo.app import QUERY, ROWS
from zoo.models import Account, Entry
from zoo.registry import innocent


def use(session: Any) -> None:
    while True:
        session.execute(QUERY)


def make_session(engine: Engine) -> Session:
    return sessionmaker(engine, expire_on_commit=False)()


@innocent()
def factory_returns_session(zoo: Any) -> None:
    """A factory has returned a Session to a handler that uses it."""
    session = make_session(zoo.engine)
    use(session)


class Request:
    def __init__(self, session: Session) -> None:
        self.session = session


def authenticate(request: Request) -> None:
    request.session.get(Account, 1)


def load(request: Request) -> None:
    request.session.scalars(select(Entry)).all()
    use(request.session)


@innocent()
def request_scope(zoo: Any) -> None:
    """One session for the request, used by several functions in turn."""
    with make_session(zoo.engine) as session:
        request = Request(session)
        authenticate(request)
        load(request)


@innocent(seen=1)
def lazy_loading(zoo: Any) -> None:
    """Lazy loading inside the session, among other statements."""
    with Session(zoo.engine) as session:
        while True:
            for account in session.scalars(select(Account)):
                _ = [entry.amount for entry in account.entries]
                session.execute(QUERY)
            session.expire_all()


@innocent(long_after=0.5, seen=0)
def objects_kept(zoo: Any) -> None:
    """Objects and closed sessions are kept; their connections are back."""
    kept: list[Any] = []
    for _ in range(8):
        with make_session(zoo.engine) as session:
            session.execute(QUERY)
            kept += [session, *session.scalars(select(Account))]
    zoo.go_on()


@innocent(long_after=0.5, seen=0)
def open_session_without_transaction(zoo: Any) -> None:
    """A Session that lives long and commits: between transactions it has nothing."""
    session = make_session(zoo.engine)
    for _ in range(5):
        session.execute(QUERY)
        session.commit()
    zoo.go_on()


@innocent(long_after=0.5, seen=0)
def scoped_and_removed(zoo: Any) -> None:
    """scoped_session with remove(), in threads that go on and in threads that end."""
    db = scoped_session(sessionmaker(zoo.engine))

    def job() -> None:
        try:
            db.execute(QUERY)
        finally:
            db.remove()

    def work() -> None:
        job()
        threading.Event().wait()

    threading.Thread(target=work, daemon=True).start()
    while True:
        thread = threading.Thread(target=job)
        thread.start()
        thread.join()


@innocent()
def savepoints_of_a_session(zoo: Any) -> None:
    """begin_nested() of the ORM."""
    with Session(zoo.engine) as session:
        while True:
            with session.begin_nested():
                session.execute(QUERY)


@innocent()
def audit_over_the_same_connection(zoo: Any) -> None:
    """An event listener that uses the connection of the session itself."""

    @event.listens_for(Session, "before_flush")
    def audit(session: Session, *_: Any) -> None:
        use(session.connection())

    with Session(zoo.engine) as session:
        account = session.get(Account, 1)
        assert account is not None
        account.balance += 1
        session.flush()


@innocent()
def session_on_given_connection(zoo: Any) -> None:
    """Sessions bound to a connection (as in tests) take none of their own."""
    with zoo.engine.connect() as connection, connection.begin():
        for _ in range(1000):
            with Session(connection) as session:
                session.execute(QUERY)


@innocent()
def yield_per_in_use(zoo: Any) -> None:
    """yield_per: the objects are being read."""
    statement = (
        select(Account)
        .join(ROWS.columns(Account.id).subquery(), text("true"))
        .execution_options(yield_per=5)
    )
    with Session(zoo.engine) as session:
        for _ in session.scalars(statement):
            pass


@contextmanager
def session_scope(engine: Engine) -> Iterator[Session]:
    session = make_session(engine)
    try:
        yield session
        session.commit()
    except Exception:
        session.rollback()
        raise
    finally:
        session.close()


def change(engine: Engine, wrong: bool) -> None:
    with session_scope(engine) as session:
        session.execute(QUERY)
        if wrong:
            raise ValueError


@innocent(long_after=0.5, seen=0)
def scopes_with_errors(zoo: Any) -> None:
    """session_scope(), commits and rollbacks, and the errors are logged."""
    while True:
        for wrong in (False, True):
            try:
                change(zoo.engine, wrong)
            except ValueError as error:
                repr(error)


@innocent()
def session_of_the_loop(zoo: Any) -> None:
    """A worker object with its own Session, in a loop that uses it."""

    class Worker:
        def __init__(self, engine: Engine) -> None:
            self.session = Session(engine)

        def step(self) -> None:
            self.session.execute(QUERY)

        def run(self) -> None:
            while True:
                self.step()

    Worker(zoo.engine).run()
