"""``instrument(engine, comment=True)``: each statement names its line and labels."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers import line_of
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, declarative_base
from sqlalchemy.pool import QueuePool

import poolwatch
from poolwatch.adapters.sqlalchemy.comments import MAX_LENGTH, comment_of
from poolwatch.model import Frame

QUERY = "select current_query()"
HOSTILE = "/a*/; drop table t --%s%(x)s%%'\"\\$1?:b é\n"
_metadata = MetaData()
_items = Table(
    "commented", _metadata, Column("id", Integer, primary_key=True), Column("v", String)
)


class _Model(declarative_base()):
    __table__ = _items


def pairs_in(statement):
    """The statement without its comment, and the decoded pairs of the comment."""
    body, comment = re.fullmatch(r"(.*) /\*(.*)\*/;?", statement, re.DOTALL).groups()
    keys = [each.split("=")[0] for each in comment.split(",")]
    assert keys == sorted(keys)
    found = re.findall(r"([^,=]+)='([^']*)'", comment)
    return body, {unquote(key): unquote(value) for key, value in found}


def site(marker):
    return f"test_sqlalchemy_comments.py:{line_of(Path(__file__), marker)}"


@pytest.fixture
def sent(sqlite):
    """An engine on SQLite, and the statements that reach its driver."""
    engine, statements = sqlite(), []
    execute = engine.dialect.do_execute

    def do_execute(cursor, statement, parameters, context=None):
        statements.append(statement)
        execute(cursor, statement, parameters, context)

    engine.dialect.do_execute = do_execute
    return engine, statements


def run(engine, statement, *parameters):
    with engine.connect() as connection:
        return connection.execute(text(statement), *parameters).all()


# -- switching -------------------------------------------------------------------------


def test_it_is_off_by_default_and_can_be_switched(instrument, sent):
    """On, off and on again for one engine; dispose() and open connections or not."""
    engine, statements = sent
    instrument(engine)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        instrument(engine, comment=True)
        connection.execute(text("select 2"))
        instrument(engine)
        connection.execute(text("select 3"))
    instrument(engine, comment=True)
    engine.dispose()
    run(engine, "select 4")
    assert [each.partition(" /*")[0] for each in statements] == [
        f"select {n}" for n in (1, 2, 3, 4)
    ]
    assert ["/*" in each for each in statements] == [False, True, False, True]
    poolwatch.uninstrument(engine)
    run(engine, "select 5")
    assert statements[-1] == "select 5"
    assert engine.dialect.do_execute.__name__ == "do_execute"


def test_all_engines(instrument, sent):
    """``instrument(comment=True)`` is for every engine, and takes other pools along."""
    engine, statements = sent
    instrument(comment=True)
    bare = QueuePool(lambda: None, reset_on_return=None)
    run(engine, "select 1")
    assert statements[0].startswith("select 1 /*call_site='")
    bare.dispose()


def test_what_sends_no_statements_is_refused(instrument):
    """A bare pool: one sentence, and it is not instrumented."""
    said = "comment=True needs an engine of SQLAlchemy: QueuePool sends no statements"
    with pytest.raises(TypeError, match=said):
        instrument(QueuePool(lambda: None), comment=True)


def test_a_wrong_setting(instrument, sent):
    """``comment`` is True or False."""
    with pytest.raises(TypeError, match="comment must be True or False, not 'yes'"):
        instrument(sent[0], comment="yes")


def test_the_engine_is_still_freed(instrument):
    """No comment keeps an engine alive."""
    engine = create_engine("sqlite://")
    instrument(engine, comment=True)
    run(engine, "select 1")
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_a_statement_that_a_worker_thread_sends(instrument, sent):
    """Only libraries are on its stack: the line of the hold is named."""
    engine, statements = sent
    instrument(engine, comment=True)
    with engine.connect() as connection, ThreadPoolExecutor(1) as threads:  # held
        threads.submit(connection.exec_driver_sql, "select 1").result()
    assert pairs_in(statements[0])[1]["call_site"].endswith(site("held"))


# -- the text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("select 1", "select 1 /*C*/"),
        ("select 1 ;\n", "select 1 /*C*/;"),
        ("select /* mine */ 1", None),
        ("select 1 -- mine", None),
    ],
)
def test_where_it_stands(instrument, sent, statement, expected):
    """At the end, before a semicolon; never a second comment."""
    engine, statements = sent
    instrument(engine, comment=True)
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    found = re.sub(r"/\*call_site=.*?\*/", "/*C*/", statements[0])
    assert found == (expected or statement)


def test_the_views_show_the_statement_without_it(instrument, sent):
    """The hold names its line itself; its statement is what the application wrote."""
    engine, _ = sent
    watch = instrument(engine, comment=True)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        (hold,) = watch.holds()
    assert hold.statement == "select ?"


def test_it_is_sorted_and_bounded():
    """Labels without room are left out whole, the call site never is."""
    frame = Frame("/" + "x/" * 5000 + "app.py", 3, "main")
    labels = {f"k{n:02}": "é" * 200 for n in range(16)} | {"b": "1", "call_site": "no"}
    comment = comment_of(frame, tuple(labels.items()))
    assert len(comment) <= MAX_LENGTH
    assert comment == "/*b='1',call_site='app.py%3A3'*/"
    assert comment_of(None, (("a b", "\udc80"),)) == "/*a%20b='%3F'*/"
    assert comment_of(None, ()) == ""


# -- drivers ---------------------------------------------------------------------------


def send_all_kinds(connection):
    """Statements of every kind; each is its own proof: it returns its text."""
    with poolwatch.label(tenant=HOSTILE):
        yield connection.execute(text(QUERY)).scalar()  # plain
        yield connection.execute(text(f"{QUERY}, '5%', :a"), {"a": "x"}).scalar()
        yield connection.exec_driver_sql(f"{QUERY}, '5%%'").scalar()
        bare = {"no_parameters": True}
        yield connection.exec_driver_sql(f"{QUERY}, '5%'", None, bare).scalar()
        rows = [{"v": "100%"}, {"v": "b"}]
        connection.execute(text("insert into commented(v) values (:v)"), rows)
        connection.execute(_items.insert().returning(_items.c.id), rows).all()
        streamed = _items.select().execution_options(stream_results=True)
        assert len(connection.execute(streamed).all()) == 4
    connection.rollback()


def check_all_kinds(connection):
    _metadata.create_all(connection)
    connection.commit()
    found = [pairs_in(each) for each in send_all_kinds(connection)]
    assert {tuple(pairs) for _, pairs in found} == {("call_site", "tenant")}
    assert {pairs["tenant"] for _, pairs in found} == {HOSTILE}
    assert found[0][1]["call_site"].endswith(site("plain"))
    with Session(connection) as session:
        session.add_all([_Model(v="5%"), _Model(v="b")])
        session.flush()
        assert session.query(_Model).count() == 2
        session.rollback()


@pytest.mark.postgres
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "pg8000"])
def test_sync_drivers(instrument, postgres, driver):
    """Placeholders, percent signs, cursors and batches are what they were."""
    engine = create_engine(postgres.url(driver))
    instrument(engine, comment=True)
    with engine.connect() as connection:
        check_all_kinds(connection)
    engine.dispose()


@pytest.mark.postgres
def test_batches_of_psycopg2(instrument, postgres):
    """execute_batch() joins statements; each has its comment."""
    url = postgres.url("psycopg2")
    engine = create_engine(url, executemany_mode="values_plus_batch")
    instrument(engine, comment=True)
    with engine.connect() as connection:
        check_all_kinds(connection)
    engine.dispose()


@pytest.mark.postgres
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_async_drivers(instrument, postgres, driver):
    """The line is the application's, on the other side of SQLAlchemy's greenlet."""

    async def main():
        engine = create_async_engine(postgres.url(driver))
        instrument(engine, comment=True)
        async with engine.connect() as connection:
            await connection.run_sync(check_all_kinds)
            with poolwatch.label(tenant="acme"):
                query = await connection.scalar(text(QUERY))  # awaited
        await engine.dispose()
        return pairs_in(query)

    statement, pairs = asyncio.run(main())
    assert statement == QUERY
    assert pairs["tenant"] == "acme"
    assert pairs["call_site"].endswith(site("awaited"))


@pytest.mark.postgres
def test_the_server_shows_the_line(instrument, postgres):
    """``pg_stat_activity`` names the line of a session that idles in a transaction."""
    engine = create_engine(postgres.url())
    instrument(engine, comment=True)
    with engine.connect() as connection, Session(connection) as session:
        session.add(_Model(v="x"))
        _metadata.create_all(connection)
        session.flush()  # flush
        ((query,),) = postgres.execute(
            "select query from pg_stat_activity"
            " where state = 'idle in transaction' and query ilike 'insert%'"
        )
        session.rollback()
    engine.dispose()
    assert pairs_in(query)[1]["call_site"].endswith(site("flush"))
