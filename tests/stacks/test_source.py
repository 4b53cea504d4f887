"""What the source around a call site says, by snippets with marked lines."""

from __future__ import annotations

import linecache
import textwrap
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from poolwatch.model import Frame
from poolwatch.stacks.source import SiteSource, read_source

_numbers = count()


@pytest.fixture
def read() -> Iterator[Callable[[str], dict[str, str]]]:
    """Reads a snippet: its function is ``f``, the call site the line with ``# site``;
    a caller, if there is one, is ``g`` and its line ``# caller``.
    """
    files = []

    def read(source: str) -> dict[str, str]:
        file = f"/snippets/{next(_numbers)}.py"
        files.append(file)
        text = textwrap.dedent(source)
        lines = text.splitlines(keepends=True)
        linecache.cache[file] = (len(text), None, lines, file)
        frames = tuple(
            Frame(file, at, function)
            for mark, function in (("# site", "f"), ("# caller", "g"))
            for at, line in enumerate(lines, 1)
            if line.rstrip().endswith(mark)
        )
        return facts(read_source(frames, "execute"), lines)

    def facts(found: SiteSource, lines: list[str]) -> dict[str, str]:
        places = {
            "block": found.block,
            "inner": found.inner_block,
            "cleanup": found.cleanup,
            "closed": found.ended_before,
        }
        return {
            name: lines[place.line - 1].partition("#")[0].strip()
            for name, place in places.items()
            if place is not None
        }

    yield read
    for file in files:
        linecache.cache.pop(file, None)


SNIPPETS = [
    (
        "no with at all",
        """
        def f(engine):
            connection = engine.connect()  # site
            connection.execute(PING)
        """,
        {},
    ),
    (
        "the head of a with",
        """
        def f(engine):
            with engine.connect() as connection:  # site
                connection.execute(PING)
        """,
        {"block": "with engine.connect() as connection:"},
    ),
    (
        "a session's first statement in its with",
        """
        async def f(engine):
            async with AsyncSession(engine) as session, other():
                if session:
                    await session.execute(PING)  # site
        """,
        {"block": "async with AsyncSession(engine) as session, other():"},
    ),
    (
        "a with on something else",
        """
        def f(engine, path):
            with open(path) as file:
                session = Session(engine)
                session.execute(file.read())  # site
        """,
        {},
    ),
    (
        "a with on a unit of work that has the session",
        """
        def f(uow):
            with uow() as repository:
                repository.session.execute(PING)  # site
        """,
        {"block": "with uow() as repository:"},
    ),
    (
        "a call in the arguments of another",
        """
        def f(make):
            with make() as session:
                return list(session.execute(PING))  # site
        """,
        {"block": "with make() as session:"},
    ),
    (
        "contextlib.closing()",
        """
        def f(engine):
            connection = engine.raw_connection()  # site
            with contextlib.closing(connection):
                connection.cursor()
        """,
        {"block": "with contextlib.closing(connection):"},
    ),
    (
        "a with on the connection itself",
        """
        def f(pool):
            connection = pool.getconn()  # site
            with connection:
                connection.cursor()
        """,
        {"inner": "with connection:"},
    ),
    (
        "getconn() in the head of a with",
        """
        def f(pool):
            with pool.getconn() as connection:  # site
                connection.cursor()
        """,
        {"inner": "with pool.getconn() as connection:"},
    ),
    (
        "closing(getconn()): neither",
        """
        def f(pool):
            with closing(pool.getconn()) as connection:  # site
                connection.cursor()
        """,
        {},
    ),
    (
        "a with on the transaction",
        """
        async def f(pool):
            connection = await pool.acquire()  # site
            async with connection.transaction():
                await connection.execute("SELECT 1")
        """,
        {"inner": "async with connection.transaction():"},
    ),
    (
        "session.begin() does return the connection",
        """
        def f(engine):
            session = Session(engine)
            with session.begin():
                session.execute(PING)  # site
        """,
        {},
    ),
    (
        "a finally clause",
        """
        def f(engine):
            session = Session(engine)
            try:
                session.execute(PING)  # site
            finally:
                log()
                session.close()
        """,
        {"cleanup": "session.close()"},
    ),
    (
        "a try right after the checkout, and putconn()",
        """
        def f(self):
            connection = self.pool.getconn()  # site
            try:
                connection.cursor()
            finally:
                self.pool.putconn(connection)
        """,
        {"cleanup": "self.pool.putconn(connection)"},
    ),
    (
        "the finally clause of another session",
        """
        def f(engine, other):
            session = Session(engine)
            try:
                session.execute(PING)  # site
            finally:
                other.close()
        """,
        {},
    ),
    (
        "a name that stands for two sessions",
        """
        def f(engine):
            session = Session(engine)
            try:
                session.execute(PING)  # site
                session = Session(engine)
            finally:
                session.close()
        """,
        {},
    ),
    (
        "used after close()",
        """
        def f(engine):
            session = Session(engine)
            session.execute(PING)
            session.close()
            if engine:
                session.execute(PING)  # site
        """,
        {"closed": "session.close()"},
    ),
    (
        "used after its with",
        """
        def f(make):
            with make() as session:
                session.execute(PING)
            return session.get(Account, 1)  # site
        """,
        {"closed": "with make() as session:"},
    ),
    (
        "closed in one of two branches",
        """
        def f(session, early):
            if early:
                session.close()
            session.execute(PING)  # site
        """,
        {},
    ),
    (
        "assigned again after close()",
        """
        def f(session, engine):
            session.close()
            session = Session(engine)
            session.execute(PING)  # site
        """,
        {},
    ),
    (
        "a method that may assign it again",
        """
        def f(self):
            self.session.close()
            self.reconnect()
            self.session.execute(PING)  # site
        """,
        {},
    ),
    (
        "a connection cannot be used after close(): this is another one",
        """
        def f(engine):
            with engine.connect() as connection:
                connection.execute(PING)
            connection = engine.connect()  # site
        """,
        {},
    ),
    (
        "closed by the caller, who passes it on",
        """
        def f(session):
            session.execute(PING)  # site

        def g(engine):
            session = Session(engine)
            session.close()
            f(session)  # caller
        """,
        {"closed": "session.close()"},
    ),
    (
        "closed by an asynchronous caller",
        """
        async def f(session, number=0):
            await session.execute(PING)  # site

        async def g(make):
            async with make() as session:
                await session.execute(PING)
            await f(session=session)  # caller
        """,
        {"closed": "async with make() as session:"},
    ),
    (
        "a method of an object that has the session, in the caller's with",
        """
        class Repository:
            def f(self):
                self.session.execute(PING)  # site

        def g(uow):
            with uow() as repository:
                repository.f()  # caller
        """,
        {"block": "with uow() as repository:"},
    ),
    (
        "two calls on one line: which one is not known",
        """
        def f(session):
            session.execute(PING)  # site

        def g(one, other):
            one.close()
            f(one), f(other)  # caller
        """,
        {},
    ),
    (
        "a comprehension: its function is read",
        """
        def f(make):
            with make() as session:
                return [session.get(Account, n) for n in range(3)]  # site
        """,
        {"block": "with make() as session:"},
    ),
    (
        "source that cannot be parsed",
        """
        def f(engine):
            connection = engine.connect()  # site
            with connection
        """,
        {},
    ),
]


@pytest.mark.parametrize(
    ("source", "found"),
    [each[1:] for each in SNIPPETS],
    ids=[each[0] for each in SNIPPETS],
)
def test_source(
    read: Callable[[str], dict[str, str]], source: str, found: dict[str, str]
) -> None:
    assert read(source) == found


def test_a_file_that_is_not_there_says_nothing() -> None:
    assert read_source((Frame("/nowhere/app.py", 3, "f"),)) == SiteSource()


def test_module_level_code_says_nothing() -> None:
    assert read_source((Frame(__file__, 3, "<module>"),)) == SiteSource()
    assert read_source(()) == SiteSource()
