"""Runs that stand still in the database say who holds and who blocks; others do not.

Each suite is rebuilt from a public report, which its docstring names. All of them end
by themselves: by the pool's timeout, or by a timeout of the server.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SERVER = """
    import gc, os, threading, time
    import pytest
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session, scoped_session, sessionmaker

    engine = create_engine(os.environ["SUITE_URL"], connect_args={
        "options": "-c statement_timeout=60s"})
    kept = []
"""

SCHEMA = """
    @pytest.fixture(scope="session", autouse=True)
    def schema():
        with engine.begin() as connection:
            connection.execute(text("drop table if exists orders"))
            connection.execute(text("create table orders (id integer primary key)"))
            connection.execute(text("insert into orders values (1)"))
        yield
"""


@pytest.fixture
def server(suites, postgres, monkeypatch):
    monkeypatch.setenv("SUITE_URL", postgres.url("psycopg2"))
    suites.write("db", SERVER, plain=True)
    suites.write("conftest", SCHEMA)
    return suites


def told(suites, *args: str) -> str:
    """Run a suite until it tells that it stands still, once, on standard error."""
    log = suites.home / "stderr"
    options = ["--pool-leaks-hang=1", "-p", "no:randomly", "-p", "no:rerunfailures"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    with log.open("w") as stderr, (suites.home / "stdout").open("w") as stdout:
        process = subprocess.Popen(
            [*command, *args],
            cwd=suites.home, stderr=stderr, stdout=stdout, start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + 60
            while "has stood still" not in log.read_text():
                assert process.poll() is None, (suites.home / "stdout").read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            time.sleep(1)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text()
    assert text.count("has stood still") == 1, text
    assert text.count("pool leaks: ") == 1, text
    return text[text.index("pool leaks: ") :]


def line_of(suites, mark: str, name: str = "test_it") -> str:
    """``test_it.py:7`` for the line that has this mark."""
    lines = (suites.home / f"{name}.py").read_text().splitlines()
    (number,) = [at for at, line in enumerate(lines, 1) if f"# {mark}" in line]
    return f"{name}.py:{number}"


# -- on a lock of the server ---------------------------------------------------------


def test_a_failed_test_pins_its_session_and_the_teardown_waits(server):
    """AutomatosAI/automatos-ai pull request #556, apache/sedona-db pull request #71."""
    server.write(
        "test_it",
        """
        @pytest.fixture
        def sweep():
            yield
            with Session(engine) as session:
                session.execute(text("delete from orders"))  # waits

        def test_dies_in_its_transaction(sweep):
            session = Session(engine)
            session.execute(text("update orders set id = 7 where id = 1"))  # holds
            raise ImportError("no such feature")
        """,
    )
    text = told(server)
    assert "the tear-down of fixture 'sweep'" in text
    assert "after test_it.py::test_dies_in_its_transaction has stood still" in text
    assert f"statement sent at {server.home.name}/{line_of(server, 'waits')}" in text
    assert "delete from orders" in text
    assert "lock_wait: " in text
    holder = text[text.index("held for") :]
    assert f"{line_of(server, 'holds')} in test_dies_in_its_transaction" in holder
    assert "by test_it.py::test_dies_in_its_transaction" in holder
    assert "idle in transaction" in holder
    assert "update orders" in holder


def test_a_scoped_session_of_the_code_under_test_blocks_drop_all(server):
    """vulnerability-lookup/vulnerability-lookup #588 and pull request #592."""
    server.write(
        "notify",
        """
        sessions = scoped_session(sessionmaker(engine))

        def notify():
            return sessions.execute(text("select id from orders")).all()  # holds
        """,
    )
    server.write(
        "conftest",
        SCHEMA.replace(
            "        yield\n",
            "        yield\n"
            "        with engine.begin() as connection:\n"
            '            connection.execute(text("drop table orders"))  # waits\n',
        ),
    )
    server.write(
        "test_it",
        """
        from notify import notify
        def test_notify(): assert notify()
        def test_other(): pass
        """,
    )
    text = told(server)
    assert "the tear-down of fixture 'schema' (session scope" in text
    assert "after test_it.py::test_other has stood still" in text
    assert line_of(server, "waits", "conftest") in text
    holder = text[text.index("held for") :]
    assert line_of(server, "holds", "notify") in holder
    assert "by test_it.py::test_notify" in holder


def test_a_worker_thread_blocks_the_tables_of_the_next_test(server):
    """vulnerability-lookup pull request #592: a thread of a fixture that goes on."""
    server.write(
        "test_it",
        """
        @pytest.fixture(scope="module")
        def worker():
            begun, done = threading.Event(), threading.Event()
            def flush():
                with engine.begin() as connection:  # holds
                    connection.execute(text("select * from orders"))
                    begun.set()
                    done.wait(60)
            thread = threading.Thread(target=flush, name="flush")
            thread.start()
            begun.wait()
            yield
            done.set()
            thread.join()

        @pytest.fixture
        def clean_tables():
            with engine.begin() as connection:
                connection.execute(text("truncate orders"))  # waits

        def test_orders(worker, clean_tables): pass
        """,
    )
    text = told(server)
    assert "the set-up of fixture 'clean_tables'" in text
    assert "for test_it.py::test_orders has stood still" in text
    assert "waits for a lock (Lock:relation)" in text
    holder = text[text.index("held for") :]
    assert line_of(server, "holds") in holder
    assert "by fixture 'worker' (module scope" in holder
    assert "waiting for a lock, queue or other thread" in holder


def test_another_worker_of_xdist_blocks(server, postgres):
    """discourse/discourse pull request #25683: parallel runs that share tables."""
    server.write("conftest", "")
    for name, body in {
        "test_one": """
            with engine.begin() as connection:  # holds
                connection.execute(text("lock table shared in share mode"))
                open("locked", "w").close()
                time.sleep(60)
        """,
        "test_two": """
            while not os.path.exists("locked"):
                time.sleep(0.05)
            time.sleep(1.2)
            with engine.begin() as connection:
                connection.execute(text("truncate shared"))  # waits
        """,
    }.items():
        server.write(name, f"def {name}():\n{body}")
    postgres.execute("create table if not exists shared (id integer)")
    text = told(server, "-n", "2")
    assert re.match(r"pool leaks: \[gw\d\] test_two.py::test_two has stood", text)
    assert line_of(server, "waits", "test_two") in text
    holder = text[text.index("held for") :]
    assert line_of(server, "holds", "test_one") in holder
    assert "by test_one.py::test_one, in pid " in holder


def test_a_statement_the_server_is_busy_with(server):
    server.write(
        "test_it",
        """
        def test_slow():
            with engine.connect() as connection:
                connection.execute(text("select pg_sleep(60), 'secret'"))
        """,
    )
    text = told(server)
    assert "test_it.py::test_slow has stood still for" in text
    assert "in a statement" in text
    assert "PostgreSQL is busy with it (Timeout:PgSleep); it waits for no lock" in text
    assert "secret" not in text
    assert "held for" not in text


# -- on the pool -----------------------------------------------------------------------


def test_a_fixture_has_the_only_connection(suites):
    """pytest-dev/pytest-xdist #60: the code under test has a session of its own."""
    suites.write("db", ONE, plain=True)
    suites.write(
        "test_it",
        """
        @pytest.fixture
        def session():
            with Session(engine) as session:
                session.execute(text("select 1"))  # holds
                yield session

        def load():
            with Session(engine) as own:
                return own.execute(text("select 1")).all()  # waits

        def test_load(session):
            assert load()
        """,
    )
    text = told(suites)
    assert text.startswith("pool leaks: test_it.py::test_load has stood still")
    assert "in a pool wait" in text
    assert f"{line_of(suites, 'waits')} in load" in text
    assert "1 of 1 connection out" in text
    assert "from " in text
    holder = text[text.index("held for") :]
    assert f"{line_of(suites, 'holds')} in session, by test_it.py::test_load" in holder
    assert "its holder is what stands still" in holder


ONE = """
    import threading, time
    import pytest
    from concurrent.futures import ThreadPoolExecutor
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import QueuePool

    engine = create_engine(
        "sqlite:///test.db", poolclass=QueuePool, pool_size=1, max_overflow=0,
        pool_timeout=60, connect_args={"check_same_thread": False})
    kept = []
"""


def test_a_server_in_a_thread_waits_while_the_test_waits_for_it(suites):
    """pytest-xdist #60 with the application in a thread: the test only waits for it."""
    suites.write("db", ONE, plain=True)
    suites.write(
        "test_it",
        """
        @pytest.fixture(scope="session")
        def server():
            with ThreadPoolExecutor(1) as threads:
                yield threads

        def handle():
            with engine.connect() as connection:  # waits
                return 1

        def test_request(server):
            with engine.connect():  # holds
                server.submit(handle).result()
        """,
    )
    text = told(suites)
    assert text.startswith("pool leaks: test_it.py::test_request has stood still")
    assert f"{line_of(suites, 'waits')} in handle" in text
    holder = text[text.index("held for") :]
    assert line_of(suites, "holds") in holder
    assert "waiting for a lock, queue or other thread" in holder


def test_a_leak_of_an_earlier_test_has_the_connection(suites):
    """fxbin/TopicEye #31: the fixture stands still far from the test that leaked."""
    suites.write("db", ONE, plain=True)
    suites.write(
        "test_it",
        """
        @pytest.fixture(autouse=True)
        def clean():
            with engine.begin() as connection:  # waits
                connection.execute(text("select 1"))

        def test_leaks():
            kept.append(engine.connect())  # holds

        def test_after(): pass
        """,
    )
    text = told(suites)
    assert "the set-up of fixture 'clean'" in text
    assert "for test_it.py::test_after has stood still" in text
    holder = text[text.index("held for") :]
    assert (
        f"{line_of(suites, 'holds')} in test_leaks, by test_it.py::test_leaks" in holder
    )


def test_a_task_waits_while_the_stream_has_the_connection(suites):
    """mozilla-ai/otari #1243: the handler asks again while its first session is out."""
    suites.write("db", ONE, plain=True)
    suites.write(
        "test_it",
        """
        import asyncio
        from sqlalchemy.ext.asyncio import create_async_engine
        own = create_async_engine(
            "sqlite+aiosqlite:///own.db", pool_size=1, max_overflow=0, pool_timeout=60)

        async def stream():
            async with own.connect() as connection:  # holds
                await connection.execute(text("select 1"))
                yield 1
                async with own.connect() as second:  # waits
                    yield 2

        async def test_stream():
            async for each in stream():
                pass
        """,
    )
    text = told(suites)
    assert text.startswith("pool leaks: test_it.py::test_stream has stood still")
    assert f"{line_of(suites, 'waits')} in stream" in text
    holder = text[text.index("held for") :]
    assert f"{line_of(suites, 'holds')} in stream, by test_it.py::test_stream" in holder


PHASES = {
    "the import of test_it.py": "stuck()",
    "setup_module of test_it for test_it.py::test_it": """
        def setup_module(): stuck()
        def test_it(): pass
        """,
    "teardown_method of TestIt after test_it.py::TestIt::test_it": """
        class TestIt:
            def teardown_method(self): stuck()
            def test_it(self): pass
        """,
    "the tear-down of fixture 'late' (module scope, test_it.py) after test_it.py::": """
        @pytest.fixture(scope="module")
        async def late():
            yield
            await asyncio.to_thread(stuck)
        async def test_it(late): pass
        """,
    "pytest, outside of the tests,": "def test_it(): pass",
}


@pytest.mark.parametrize("subject", PHASES)
def test_each_phase_of_a_run(suites, subject):
    stuck = ONE + (
        "    import asyncio\n"
        "    def stuck():\n"
        "        with engine.connect(), engine.connect(): pass\n"
    )
    suites.write("db", stuck, plain=True)
    suites.write("test_it", PHASES[subject])
    if "outside" in subject:
        suites.write("conftest", "def pytest_sessionfinish(): stuck()")
    text = told(suites)
    assert text.startswith(f"pool leaks: {subject}"), text
    assert text.count("pool_deadlock: ") <= 1
    assert "exhausted: " not in text


# -- innocents -------------------------------------------------------------------------

INNOCENT = {
    "slow by itself, with a connection in its hands": """
        def test_slow():
            with engine.connect() as connection:
                connection.execute(text("select 1"))
                time.sleep(2)
        """,
    "computes": """
        def test_computes():
            with Session(engine) as session:
                session.execute(text("select 1"))
                until = time.monotonic() + 2
                while time.monotonic() < until:
                    sum(range(1000))
        """,
    "waits for an answer over HTTP": """
        import http.server, urllib.request
        class Slow(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                time.sleep(2)
                self.send_response(200)
                self.end_headers()
            def log_message(self, *args): pass

        def test_http():
            server = http.server.HTTPServer(("127.0.0.1", 0), Slow)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with engine.connect():
                urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}").close()
            server.shutdown()
            server.server_close()
        """,
    "waits for a thread that works": """
        def test_thread():
            def work():
                with engine.connect() as connection:
                    connection.execute(text("select 1"))
                    time.sleep(2)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        """,
    "an overloaded pool that moves": """
        def test_moves():
            def work():
                with engine.connect() as connection:
                    connection.execute(text("select 1"))
                    time.sleep(0.1)
            with ThreadPoolExecutor(20) as threads:
                for job in [threads.submit(work) for _ in range(20)]:
                    job.result()
        """,
    "a wait that ends in time": """
        def test_waits():
            held = engine.connect()
            threading.Timer(0.3, held.close).start()
            engine.connect().close()
            time.sleep(1.5)
        """,
    "a thread of the session in a statement that began before the test": """
        def forever():
            time.sleep(2.5)
            return 1

        @pytest.fixture(scope="session", autouse=True)
        def poller():
            begun = threading.Event()
            def poll():
                with engine.connect() as connection:
                    own = connection.connection.dbapi_connection
                    own.create_function("forever", 0, lambda: begun.set() or forever())
                    connection.execute(text("select forever()"))
            thread = threading.Thread(target=poll)
            thread.start()
            begun.wait()
            yield
            thread.join()

        def test_first(): time.sleep(0.6)
        def test_second(): time.sleep(1.2)
        """,
    "a long hold that is declared": """
        import poolwatch
        def test_declared():
            with poolwatch.long_hold("a report"), engine.connect() as connection:
                own = connection.connection.dbapi_connection
                own.create_function("slow", 0, lambda: time.sleep(1.5))
                connection.execute(text("select slow()"))
        """,
}


@pytest.mark.parametrize("name", INNOCENT)
def test_innocent(suites, name):
    suites.write("db", ONE, plain=True)
    suites.write("test_it", INNOCENT[name])
    ran = suites.run("--pool-leaks-hang=1")
    assert ran.result.ret == 0, ran.text
    assert "stood still" not in ran.text
    ran.accuses_nobody()


def test_a_short_lock_wait_is_innocent(server):
    """pytest-dev/pytest-django #429: a session that ends while the teardown waits."""
    server.write(
        "test_it",
        """
        def test_it():
            other = engine.connect()
            other.execute(text("select * from orders"))
            threading.Timer(0.5, other.close).start()
            with engine.begin() as connection:
                connection.execute(text("truncate orders"))
            time.sleep(2)
        """,
    )
    ran = server.run("--pool-leaks-hang=1.5")
    assert ran.result.ret == 0, ran.text
    assert "stood still" not in ran.text


@pytest.mark.parametrize(
    ("ini", "args"), [("", ["--pool-leaks-hang=0"]), ("pool_leaks_hang = 0", [])]
)
def test_off(suites, ini, args):
    suites.write("db", ONE.replace("pool_timeout=60", "pool_timeout=3"), plain=True)
    (suites.home / "tox.ini").write_text(f"[pytest]\n{ini}\n")
    suites.write(
        "test_it",
        """
        def test_waits():
            with engine.connect(), engine.connect(): pass
        """,
    )
    ran = suites.run(*args)
    assert ran.failed == ["test_waits"]
    assert "stood still" not in ran.text


def test_without_capture_and_with_a_socket_directory_of_others(suites, monkeypatch):
    """What other processes may not be told is told here all the same."""
    monkeypatch.setenv("POOLWATCH_DIR", "/proc/nowhere")
    suites.write("db", ONE, plain=True)
    suites.write(
        "test_it",
        """
        def test_waits():
            with engine.connect(), engine.connect(): pass  # both
        """,
    )
    text = told(suites, "-s")
    assert text.count(f"{line_of(suites, 'both')} in test_waits") >= 2
