"""The test that leaks is the test that fails, and no other, in any order."""

from __future__ import annotations

import pytest

BODIES = """
    def helper():
        return engine.connect()  # here

    def test_leaks_in_its_body():
        kept.append(engine.connect())  # here

    def test_leaks_by_dropping():
        engine.connect().execute(text("select 1"))  # here

    def test_leaks_in_a_cycle():
        cycle = [engine.connect()]  # here
        cycle.append(cycle)

    class Guard: pass
    guards = []

    def test_leaks_in_a_cycle_that_another_thread_collects():
        def drop():
            first = Guard()
            guards.append(weakref.ref(first, lambda _: slowly()))
            cycle = [first, engine.connect()]  # here
            cycle.append(cycle)

        def slowly():
            begun.set()
            time.sleep(0.3)

        begun = threading.Event()
        drop()
        collector = threading.Thread(target=gc.collect, daemon=True)
        collector.start()
        assert begun.wait(60)

    def test_leaks_through_a_helper():
        kept.append(helper())

    def test_fine():
        with engine.connect() as connection:
            connection.execute(text("select 1"))

    @pytest.mark.parametrize("leak", ["leaks", "fine"])
    def test_parametrized(leak):
        connection = engine.connect()  # here
        if leak == "fine":
            connection.close()

    class TestClass:
        def test_leaks(self):
            kept.append(engine.connect())  # here

        def test_fine(self):
            engine.connect().close()

    class TestSetupMethod:
        def setup_method(self, method):
            self.connection = engine.connect()  # here

        def teardown_method(self, method):
            if "leaks" not in method.__name__:
                self.connection.close()

        def test_fine(self):
            pass

        def test_leaks(self):
            kept.append(self)

    def test_leaks_a_session():
        session = Session(engine)
        session.execute(text("select 1"))  # here
        kept.append(session)

    def test_leaks_through_a_scoped_session():
        registry = scoped_session(sessionmaker(engine))
        registry.execute(text("select 1"))  # here
        kept.append(registry)

    def test_fine_scoped_session():
        registry = scoped_session(sessionmaker(engine))
        registry.execute(text("select 1"))
        registry.remove()

    def test_leaks_from_an_engine_of_its_own():
        kept.append(make("own.db").connect())  # here

    def test_leaks_across_dispose():
        own = make("own.db")
        kept.append(own.connect())  # here
        own.dispose()

    def test_fine_across_dispose():
        own = make("own.db")
        connection = own.connect()
        own.dispose()
        connection.close()

    def test_leaks_a_detached_one():
        connection = engine.connect()  # here
        connection.detach()
        kept.append(connection)

    def test_fine_detached():
        connection = engine.connect()
        connection.detach()
        connection.close()

    def test_fine_invalidated():
        connection = engine.connect()
        connection.invalidate()

    def test_leaks_in_one_of_its_subtests(subtests):
        for number in range(3):
            with subtests.test(number=number):
                connection = engine.connect()  # here
                if number != 1:
                    connection.close()
                else:
                    kept.append(connection)

    def test_fine_subtests(subtests):
        for number in range(3):
            with subtests.test(number=number), engine.connect():
                pass

    @pytest.mark.skip
    def test_skipped():
        kept.append(engine.connect())

    def test_leaks_in_a_doctest_helper():
        kept.append(helper())
"""

THREADS = """
    @pytest.fixture(scope="session", autouse=True)
    def threads():
        yield
        for thread in started:
            thread.join(60)

    started = []

    def start(function):
        started.append(threading.Thread(target=function))
        started[-1].start()

    def test_fine_returned_in_time():
        def work():
            with engine.connect():
                time.sleep(0.05)
        start(work)

    def test_leaks_thread_still_holds():
        def work():
            connection = engine.connect()  # here
            taken.set()
            time.sleep(30)
            connection.close()
        taken = threading.Event()
        threading.Thread(target=work, daemon=True).start()  # nobody waits for it
        assert taken.wait(60)

    def test_leaks_thread_takes_later():
        def work():
            time.sleep(0.6)
            engine.connect()  # here
        start(work)

    def test_fine_thread_takes_later():
        def work():
            time.sleep(0.6)
            engine.connect().close()
        start(work)

    def test_fine_meanwhile():
        time.sleep(0.3)

    executor = ThreadPoolExecutor(1)

    def test_fine_in_the_executor():
        executor.submit(lambda: engine.connect().close()).result()

    def test_leaks_in_the_executor():
        executor.submit(lambda: kept.append(engine.connect())).result()  # here

    def test_fine_in_the_executor_again():
        executor.submit(lambda: engine.connect().close()).result()
"""

FIXTURES = """
    @pytest.fixture
    def by_function():
        kept.append(engine.connect())  # here

    @pytest.fixture
    def in_its_end():
        yield
        kept.append(engine.connect())  # here

    @pytest.fixture(scope="class")
    def by_class():
        kept.append(engine.connect())  # here

    @pytest.fixture(scope="class")
    def in_the_end_of_class():
        yield
        kept.append(engine.connect())  # here

    @pytest.fixture(scope="module")
    def by_module():
        yield engine.connect()  # here

    @pytest.fixture(scope="module")
    def in_the_end_of_module():
        yield
        kept.append(engine.connect())  # here

    @pytest.fixture(scope="module")
    def thread_of_module():
        def work():
            connection = engine.connect()  # here
            taken.set()
            time.sleep(30)
        taken = threading.Event()
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert taken.wait(60)
        yield

    @pytest.fixture(scope="module")
    def fine_of_module():
        with engine.connect() as connection:
            yield connection

    @pytest.fixture(scope="module")
    def module_session():
        with Session(engine) as session:
            yield session

    @pytest.fixture(scope="module")
    def unclosed_session():
        yield Session(engine)

    def test_fine_before(fine_of_module, module_session):
        module_session.execute(text("select 1"))

    def test_leaks_function(by_function, fine_of_module): pass
    def test_leaks_end(in_its_end): pass
    def test_leaks_module(by_module, module_session): pass
    def test_leaks_end_of_module(in_the_end_of_module): pass
    def test_leaks_thread(thread_of_module): pass

    def test_leaks_into_a_session_of_the_module(unclosed_session):
        unclosed_session.execute(text("select 1"))  # here

    def test_fine_after(fine_of_module, module_session):
        module_session.execute(text("select 1"))

    def test_leaks_package(by_package): pass
    def test_leaks_session(by_session): pass

    class TestClass:
        def test_leaks(self, by_class): pass
        def test_fine(self): pass

    class TestEndOfClass:
        def test_leaks(self, in_the_end_of_class): pass
        def test_fine(self): pass

    class TestSetupClass:
        @classmethod
        def setup_class(cls):
            cls.connection = engine.connect()  # here

        def test_leaks(self): pass

    class TestFineSetupClass:
        @classmethod
        def setup_class(cls):
            cls.session = Session(engine)

        @classmethod
        def teardown_class(cls):
            cls.session.close()

        def test_fine(self):
            self.session.execute(text("select 1"))

    def test_fine_last(): pass
"""

CONFTEST = """
    @pytest.fixture(scope="session")
    def by_session():
        kept.append(engine.connect())  # here

    @pytest.fixture(scope="package")
    def by_package():
        kept.append(engine.connect())  # here
"""

UNITTEST = """
    import unittest, poolwatch

    class Fine(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            cls.connection = engine.connect()
            cls.session = Session(engine)

        @classmethod
        def tearDownClass(cls):
            cls.connection.close()
            cls.session.close()

        def test_fine(self):
            self.session.execute(text("select 1"))

        def test_fine_too(self):
            self.addCleanup(engine.connect().close)

    class SetUp(unittest.TestCase):
        def setUp(self):
            self.connection = engine.connect()  # here

        def test_leaks(self):
            kept.append(self.connection)

        def test_fine(self):
            self.connection.close()

    class SetUpClass(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            cls.connection = engine.connect()  # here

        def test_leaks(self):
            pass

    class Async(unittest.IsolatedAsyncioTestCase):
        async def test_leaks(self):
            kept.append(engine.connect())  # here

        async def test_fine(self):
            with engine.connect():
                pass
"""


@pytest.mark.parametrize(
    ("args", "order"),
    [([], True), ([], False), (["-n", "2"], False)],
    ids=["in order", "in random order", "xdist"],
)
def test_whoever_leaks_is_blamed(suites, args, order):
    suites.write("conftest", CONFTEST)
    suites.write("test_bodies", BODIES)
    suites.write("test_threads", THREADS)
    suites.write("test_fixtures", FIXTURES)
    suites.write("test_unittest", UNITTEST)
    ran = suites.run(*args, order=order)
    ran.accuses_the_right_ones()
    assert ran.failed == []
    owners = {leak["owner"] for leak in ran.leaks}
    for name in ("setup_class of TestSetupClass", "setUpClass of SetUpClass"):
        assert name in owners
    assert "fixture 'by_session' (session scope)" in owners


def test_a_doctest(suites):
    suites.write(
        "mod",
        '''
        def leaks():
            """
            >>> kept.append(engine.connect())
            """

        def fine():
            """
            >>> engine.connect().close()
            """
        ''',
    )
    ran = suites.run("--doctest-modules", "mod.py")
    assert ran.blamed == ["mod.leaks"]
    assert ran.errors == ["mod.leaks"]
    assert "<doctest mod.leaks[0]>" in ran.leaks[0]["site"]["file"]


def test_what_a_file_leaks_when_it_is_imported(suites):
    suites.write(
        "test_it", "engine.connect()\nheld = engine.connect()\ndef test(): pass"
    )
    ran = suites.run()
    assert [leak["owner"] for leak in ran.leaks] == ["test_it.py"]
    assert ran.errors == ["test_it.py"]
    ran = suites.run("-n", "2")
    assert [leak["owner"] for leak in ran.leaks] == ["test_it.py"]
