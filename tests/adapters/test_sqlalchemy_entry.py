"""A stack begins where the application went into SQLAlchemy."""

from __future__ import annotations

import sys

import greenlet
import pytest
from fix_core import book_of
from sqlalchemy import select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from poolwatch.adapters.sqlalchemy import entry
from poolwatch.stacks.capture import MAX_FRAMES


class Base(DeclarativeBase):
    """Of the models here."""


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def engine(instrument, sqlite):
    engine = sqlite()
    Base.metadata.create_all(engine)
    instrument(engine)
    return engine


def functions(engine):
    """Of the one open hold: what its stack goes through, the innermost first."""
    [hold] = book_of(engine).open_holds()
    return [frame.function for frame in hold.stack.frames()]


@pytest.mark.parametrize("times", [1, 3])
def test_of_an_engine(engine, times):
    """The two ways to ask it: nothing of SQLAlchemy's own stands before the caller."""
    for _ in range(times):
        with engine.connect():
            assert functions(engine)[0] == "test_of_an_engine"
        with engine.begin():
            assert functions(engine)[0] == "begin"
            assert "test_of_an_engine" in functions(engine)


@pytest.mark.parametrize(
    ("begin", "use"),
    [
        ("flush", lambda s: (s.add(Item(id=1)), s.flush())),
        ("execute", lambda s: s.execute(text("select 1"))),
        ("scalars", lambda s: s.scalars(select(Item)).all()),
        ("connection", lambda s: s.connection()),
    ],
)
def test_of_a_session(engine, begin, use):
    """It begins with the method that was called, the first time and later ones."""
    for _ in range(3):
        with Session(engine) as session:
            use(session)
            stack = functions(engine)
            assert stack[0] == begin
            assert stack[1] == "<lambda>"
            assert stack[2] == "test_of_a_session"
            session.rollback()


def test_a_flush_that_nobody_asked_for(engine):
    """What has set off an autoflush is told, too."""
    with Session(engine) as session:
        session.add(Item(id=1))
        session.scalars(select(Item)).all()
        stack = functions(engine)
        assert stack[0] == "flush"
        at = stack.index("scalars")
        assert stack[at + 1] == "test_a_flush_that_nobody_asked_for"


def test_more_ways_than_are_remembered(engine, monkeypatch):
    """Then a stack is longer than it need be, and as true."""
    monkeypatch.setattr(entry, "_known_methods", [])
    monkeypatch.setattr(entry, "_MAX_KNOWN_METHODS", 0)
    with Session(engine) as session:
        session.add(Item(id=1))
        session.flush()
        stack = functions(engine)
    assert stack[0] == "_connection_for_bind"
    assert "test_more_ways_than_are_remembered" in stack


def test_orm_loaded_later(engine, monkeypatch):
    """As when the engine is made by a module that is imported first."""
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "sqlalchemy.orm.session")
        with engine.connect():
            assert functions(engine)[0] == "test_orm_loaded_later"
    with Session(engine) as session:
        session.connection()
        assert functions(engine)[:2] == ["connection", "test_orm_loaded_later"]


def test_a_pool_that_is_asked_directly(engine):
    """Then whoever asks it is the first."""
    lent = engine.pool.connect()
    assert functions(engine)[0] == "test_a_pool_that_is_asked_directly"
    lent.close()
    lent = engine.raw_connection()
    assert functions(engine)[:2] == [
        "raw_connection",
        "test_a_pool_that_is_asked_directly",
    ]
    lent.close()


@pytest.mark.parametrize("begin", ["pool", "engine"])
def test_nothing_below(engine, begin):
    """A greenlet may begin with it, as that of ``gevent.spawn(engine.connect)``."""
    asked = engine.pool if begin == "pool" else engine
    lent = greenlet.greenlet(asked.connect).switch()
    stack = ["raw_connection", "__init__", "connect"] if begin == "engine" else []
    assert functions(engine) == stack
    assert not book_of(engine).switched_off()
    lent.close()


def test_a_deep_stack(engine):
    """It is kept as far as any is."""

    def deeper(levels):
        return engine.connect() if not levels else deeper(levels - 1)

    with deeper(200):
        stack = functions(engine)
    assert len(stack) == MAX_FRAMES
    assert set(stack) == {"deeper"}
