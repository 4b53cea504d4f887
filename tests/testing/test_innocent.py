"""Suites that are in order: nobody is accused."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.slow

PROPER = """
    @pytest.fixture(scope="session")
    def connection():
        with engine.connect() as connection:
            yield connection

    @pytest.fixture(scope="session")
    def unclosed_until_the_end():
        connection = engine.connect()
        yield connection
        connection.close()

    @pytest.fixture
    def rolled_back(connection):
        transaction = connection.begin_nested()
        session = Session(bind=connection, join_transaction_mode="create_savepoint")
        yield session
        session.close()
        transaction.rollback()

    @pytest.fixture
    def per_test():
        connection = engine.connect()
        transaction = connection.begin()
        yield connection
        transaction.rollback()
        connection.close()

    @pytest.fixture
    def session(per_test):
        with Session(bind=per_test) as session:
            yield session

    @pytest.fixture
    def handed_on(per_test, request):
        extra = engine.connect()
        request.addfinalizer(extra.close)
        return extra

    @pytest.fixture(scope="session", autouse=True)
    def poller():
        def poll():
            while not end.is_set():
                with engine.connect() as connection:
                    connection.execute(text("select 1"))
                    time.sleep(0.01)
        end = threading.Event()
        threads = [threading.Thread(target=poll) for _ in range(3)]
        for thread in threads:
            thread.start()
        yield
        end.set()
        for thread in threads:
            thread.join()

    @pytest.fixture(scope="session")
    def forever():
        def poll():
            while True:
                with engine.connect():
                    time.sleep(0.01)
        threading.Thread(target=poll, daemon=True).start()

    @pytest.fixture(scope="module")
    def lazy():
        session = Session(engine)
        yield session
        session.close()

    @pytest.fixture(scope="module")
    def lazy_registry():
        registry = scoped_session(sessionmaker(engine))
        yield registry
        registry.remove()

    @pytest.fixture(scope="module")
    def factory():
        made = []
        def make():
            made.append(engine.connect())
            return made[-1]
        yield make
        for each in made:
            each.close()

    @pytest.fixture(scope="module", params=[1, 2])
    def twice(request):
        with engine.connect() as connection:
            yield connection

    def test_one(rolled_back, session, handed_on):
        rolled_back.execute(text("select 1"))
        session.execute(text("select 1"))
        handed_on.execute(text("select 1"))

    def test_two(rolled_back, unclosed_until_the_end, forever):
        rolled_back.execute(text("select 1"))

    def test_lazy(lazy, lazy_registry, factory):
        lazy.execute(text("select 1"))
        lazy_registry.execute(text("select 1"))
        factory()

    def test_lazy_again(lazy, lazy_registry, factory):
        lazy.execute(text("select 1"))
        lazy_registry.execute(text("select 1"))
        factory()

    def test_twice(twice): pass
    def test_twice_again(twice): pass

    @pytest.mark.xfail
    def test_expected_to_fail():
        connection = engine.connect()
        assert connection.info == 1

    @pytest.mark.xfail(strict=True, raises=ZeroDivisionError)
    def test_expected_to_raise(per_test):
        1 / 0

    def test_expected_to_fail_from_here_on():
        connection = engine.connect()
        pytest.xfail("known")

    @pytest.mark.skip
    def test_skipped(per_test): pass

    def test_skips_itself(per_test):
        pytest.skip("no")

    @pytest.mark.skipif("True")
    def test_skipped_if(): pass
    def test_declared():
        import poolwatch
        with poolwatch.long_hold("for the whole run"):
            kept.append(engine.connect())
"""

FAILING = """
    @pytest.fixture
    def broken():
        connection = engine.connect()
        raise RuntimeError("no")

    @pytest.fixture(scope="module")
    def broken_module():
        connection = engine.connect()
        raise RuntimeError("no")

    @pytest.fixture
    def breaks_at_the_end():
        connection = engine.connect()
        yield
        raise RuntimeError("no")

    def test_setup(broken): pass
    def test_module_setup(broken_module): pass
    def test_module_setup_again(broken_module): pass
    def test_end(breaks_at_the_end): pass

    def test_body():
        connection = engine.connect()
        assert connection.info == 1

    def test_subtest(subtests):
        with subtests.test():
            connection = engine.connect()
            assert connection.info == 1

    def test_fine(): pass
"""


@pytest.mark.parametrize(
    ("args", "order"), [([], True), (["-n", "2"], False)], ids=["in order", "xdist"]
)
def test_suites_in_order(suites, args, order):
    suites.write("test_proper", PROPER)
    suites.write("test_more", PROPER)
    ran = suites.run(*args, order=order)
    assert ran.result.ret == 0, ran.text
    ran.accuses_nobody()


def test_what_fails_by_itself_is_not_failed_twice(suites):
    suites.write("test_failing", FAILING)
    ran = suites.run()
    assert ran.leaks == []
    assert ran.errors == [
        "test_end",
        "test_module_setup",
        "test_module_setup_again",
        "test_setup",
    ]
    assert ran.failed[:1] == ["test_body"]
    # and it says so
    assert "1 connection not returned by this test, which failed" in ran.text


def test_a_test_may_switch_poolwatch_off_and_on(suites):
    suites.write(
        "test_it",
        """
        import poolwatch

        def test_fine_undoes_all():
            connection = engine.connect()
            poolwatch.instrument()
            poolwatch.uninstrument()
            connection.close()

        def test_leaks_after_that():
            kept.append(engine.connect())  # here

        def test_fine_undoes_one():
            poolwatch.instrument(engine)
            with engine.connect():
                poolwatch.uninstrument(engine)

        def test_leaks_after_that_too():
            kept.append(engine.connect())  # here
        """,
    )
    suites.run().accuses_the_right_ones()


def test_without_sqlalchemy_nothing_is_loaded(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import sys, threading
        def test_it():
            loaded = [n for n in sys.modules if n.split(".")[0] == "sqlalchemy"]
            assert loaded == []
            assert [each.name for each in threading.enumerate()] == ["MainThread"]
        """
    )
    ran = pytester.runpytest_subprocess("--pool-leaks=error", "-p", "no:rerunfailures")
    ran.assert_outcomes(passed=1)


def test_a_test_may_be_watched_from_outside(suites):
    suites.write(
        "test_it",
        """
        import os, poolwatch
        def test_it():
            with engine.connect():
                pass
            poolwatch.instrument(engine)
            with engine.connect():
                assert os.listdir(os.environ["POOLWATCH_DIR"])
            poolwatch.uninstrument(engine)
        """,
    )
    assert suites.run().result.ret == 0


def test_what_only_a_leak_needs_is_not_loaded_without_one(suites):
    suites.write(
        "test_it",
        """
        import sys

        @pytest.fixture(scope="session")
        def table():
            with engine.begin() as connection:
                connection.execute(text("create table things (id integer)"))

        def test_it(table):
            with engine.connect() as connection:
                connection.execute(text("select * from things"))

        def test_what_is_loaded():
            ours = {n for n in sys.modules if n.startswith("poolwatch.")}
            assert "poolwatch.adapters.sqlalchemy.hooks" in ours
            assert not ours & {
                "poolwatch.agent.server",
                "poolwatch.agent.snapshots",
                "poolwatch.diagnosis.references.search",
                "poolwatch.testing.evidence",
                "poolwatch.testing.late_reports",
                "poolwatch.testing.report",
                "poolwatch.testing.summary",
            }
        """,
    )
    assert suites.run().result.ret == 0


def test_the_plugin_alone_opens_no_socket_and_starts_no_thread(suites):
    suites.write(
        "test_it",
        """
        import os
        def test_it():
            with engine.connect():
                names = [each.name for each in threading.enumerate()]
                assert names == ["MainThread"]
            assert not os.path.exists(os.environ["POOLWATCH_DIR"])
        """,
    )
    assert suites.run().result.ret == 0


@pytest.mark.parametrize("order", [True, False])
def test_order_of_sqlite_in_memory(suites, order):
    """One connection for all: said once, and nobody is accused."""
    suites.write(
        "test_it",
        """
        from sqlalchemy.pool import StaticPool, SingletonThreadPool
        memory = create_engine("sqlite://")
        static = create_engine("sqlite:///static.db", poolclass=StaticPool)
        def test_one(): kept.append(memory.connect())
        def test_two(): kept.append(static.connect())
        def test_three(): static.connect()
        """,
    )
    ran = suites.run(order=order)
    assert ran.result.ret == 0
    assert ran.leaks == []
    assert ran.text.count("not judged") == 1
    assert "StaticPool" in ran.text
    assert "SingletonThreadPool" in ran.text
    assert {each["kind"] for each in ran.found["unjudged"]} == {
        "StaticPool",
        "SingletonThreadPool",
    }


def test_no_finder_is_left(pytester: pytest.Pytester):
    # The interpreter keeps the list that it began with, and so what is left there:
    # pytest's finder, with it all tests, and the end of the process takes longer.
    pytester.makepyfile("def test_it(): import concurrent.futures.thread")
    ran = pytester.run(
        sys.executable,
        "-c",
        "import sys, pytest\n"
        "there, finders = sys.meta_path, list(sys.meta_path)\n"
        "pytest.main(['--pool-leaks=error'])\n"
        "print('as before:', sys.meta_path is there, there == finders)",
    )
    ran.stdout.fnmatch_lines(["*1 passed*", "as before: True True"])
