"""Which attribute's load has checked out a connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, create_engine, event, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
)

from poolwatch.adapters.sqlalchemy.lazy_loads import loaded_attribute
from poolwatch.stacks.capture import current_frames, pairs_of


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelves"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    note: Mapped[str] = mapped_column(deferred=True)
    books: Mapped[list[Book]] = relationship(back_populates="shelf")


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelves.id"))
    shelf: Mapped[Shelf] = relationship(back_populates="books")


@pytest.fixture
def session() -> Iterator[Session]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Shelf(label="a", note="n", books=[Book(note="b")]))
        session.commit()
        yield session


def loads(session: Session, read: Callable[[], Any]) -> list[Any]:
    """What each checkout of a call is said to load."""
    found: list[Any] = []

    def on_checkout(*_: Any) -> None:
        frame = current_frames()[threading.get_ident()]
        found.append(loaded_attribute(pairs_of(frame)))

    engine = session.get_bind()
    assert isinstance(engine, Engine)
    event.listen(engine, "checkout", on_checkout)
    read()
    event.remove(engine, "checkout", on_checkout)
    return found


def test_a_statement_loads_no_attribute(session: Session) -> None:
    assert loads(session, lambda: session.execute(text("SELECT 1"))) == [None]


def test_relationship(session: Session) -> None:
    shelf = session.get(Shelf, 1)
    assert shelf is not None
    session.commit()
    assert loads(session, lambda: shelf.books) == [("Shelf.books", True)]


def test_expired_column(session: Session) -> None:
    shelf = session.get(Shelf, 1)
    assert shelf is not None
    session.commit()
    assert loads(session, lambda: len(shelf.label)) == [("Shelf.label", False)]


def test_the_class_is_left_out_where_several_have_the_name(session: Session) -> None:
    shelf = session.get(Shelf, 1)
    assert shelf is not None
    session.commit()
    assert loads(session, lambda: shelf.note) == [("note", False)]


def test_an_attribute_whose_name_the_code_does_not_show(session: Session) -> None:
    shelf, name = session.get(Shelf, 1), "books"
    session.commit()
    assert loads(session, partial(getattr, shelf, name)) == [("an attribute", True)]
