"""Faults with the ORM's sessions."""

from __future__ import annotations

import gc
import threading
from typing import Any

from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from zoo.app import PING, QUERY
from zoo.models import Account
from zoo.registry import fault


class Billing:
    def __init__(self, engine: Engine) -> None:
        self.session = Session(engine)

    def balance(self, number: int) -> int:
        account = self.session.get(Account, number)  # site: session_on_self
        return account.balance if account else 0


_services: dict[str, Billing] = {}


@fault("leaked.abandoned")
def session_on_self(zoo: Any) -> None:
    """A Session on self: the service lives as long as the application."""
    _services["billing"] = Billing(zoo.engine)
    _services["billing"].balance(1)
    zoo.go_on()


class Worker:
    def __init__(self, engine: Engine) -> None:
        self.session = Session(engine)

    def run(self, go_on: Any) -> None:
        self.handle(1)
        go_on()

    def handle(self, number: int) -> None:
        self.session.scalars(select(Account))  # site: session_of_the_worker


@fault("leaked.abandoned", "long_hold", "held_across_io", at="session_of_the_worker")
def session_of_the_worker(zoo: Any) -> None:
    """The worker's own session, left open between the jobs of its loop.

    Its loop is running and has it: whether it will ever use it again cannot be known.
    """
    Worker(zoo.engine).run(zoo.go_on)


_by_tenant: dict[str, Session] = {}


def open_session(engine: Engine, tenant: str) -> Session:
    session = _by_tenant[tenant] = Session(engine)
    session.execute(PING)  # site: session_per_tenant
    return session


@fault("leaked.abandoned", at="session_per_tenant")
def session_per_tenant(zoo: Any) -> None:
    """A dictionary of sessions that only grows."""
    for tenant in ("a", "b", "c"):
        open_session(zoo.engine, tenant)
    zoo.go_on()


_streams: list[Any] = []


def export(engine: Engine) -> Any:
    session = Session(engine)
    statement = select(Account).execution_options(yield_per=1)
    accounts = session.scalars(statement)  # site: yield_per_kept
    _streams.append((session, accounts))
    return next(iter(accounts))


@fault("leaked.abandoned")
def yield_per_kept(zoo: Any) -> None:
    """yield_per, one object read, the rest of it kept for later."""
    export(zoo.engine)
    zoo.go_on()


def account_of(engine: Engine, number: int) -> Account | None:
    return Session(engine).get(Account, number)  # site: session_dropped


@fault("leaked.collected", long_after=30)
def session_dropped(zoo: Any) -> None:
    """Session(engine).get(...): the object is kept, the session is not."""
    account = account_of(zoo.engine, 1)
    gc.collect()
    assert account is not None
    zoo.go_on()


def total(make: Any) -> int:
    session = make()
    accounts = session.scalars(select(Account)).all()  # site: commit_without_close
    session.commit()
    refreshed = sum(account.balance for account in accounts)  # site: expired_again
    return int(refreshed)


@fault("leaked.collected", at="expired_again", long_after=30)
def loaded_again_after_commit(zoo: Any) -> None:
    """commit() gives the connection back; the expired objects take it again."""
    total(sessionmaker(zoo.engine))
    gc.collect()
    zoo.go_on()


def new_entry(engine: Engine) -> None:
    with Session(engine) as session:
        account = session.get(Account, 1)  # site: flushing
        assert account is not None
        account.balance += 1
        session.flush()


@fault("nested", at="flushing auditing", long_after=30)
def audit_in_flush(zoo: Any) -> None:
    """An event listener writes its audit trail over a connection of its own."""
    engine = zoo.engine

    @event.listens_for(Session, "before_flush")
    def audit(session: Session, *_: Any) -> None:
        with engine.connect() as connection:  # site: auditing
            while True:
                connection.execute(QUERY)

    new_entry(engine)


db: dict[str, Any] = {}
"""The module of an application in which everything finds its scoped_session."""


def registry_of(engine: Engine, **more: Any) -> Any:
    return scoped_session(sessionmaker(engine), **more)


@fault("leaked.abandoned", at="scoped_and_the_thread_goes_on")
def scoped_and_the_thread_goes_on(zoo: Any) -> None:
    """scoped_session without remove(): the job is over, its thread is not."""
    db["app"] = registry_of(zoo.engine)

    def job() -> None:
        db["app"].execute(PING)  # site: scoped_and_the_thread_goes_on

    def work() -> None:
        job()
        threading.Event().wait()

    threading.Thread(target=work, name="worker", daemon=True).start()
    zoo.go_on()


@fault("leaked.orphaned", long_after=30)
def scoped_by_ident(zoo: Any) -> None:
    """scoped_session by thread ident, in a thread that has ended."""
    db["app"] = registry_of(zoo.engine, scopefunc=threading.get_ident)

    def job() -> None:
        db["app"].execute(PING)  # site: scoped_by_ident

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    zoo.go_on()


@fault("leaked.orphaned", "leaked.collected", at="scoped_thread_local", long_after=30)
def scoped_thread_local(zoo: Any) -> None:
    """The plain scoped_session in a thread that has ended: garbage before long."""
    db["app"] = registry_of(zoo.engine)

    def job() -> None:
        db["app"].execute(PING)  # site: scoped_thread_local

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    zoo.go_on()


def move(session: Session) -> None:
    session.get(Account, 1)  # site: session_outer
    with Session(session.get_bind()) as own:
        while True:
            own.execute(QUERY)  # site: session_inner


@fault("nested", at="session_outer session_inner", long_after=30)
def session_in_session(zoo: Any) -> None:
    """A service method opens its own Session although it was given one."""
    with Session(zoo.engine) as session:
        move(session)
