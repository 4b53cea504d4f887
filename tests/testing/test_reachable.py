"""What tests leave with a fixture of a wider scope is its to close; all else is not."""

from __future__ import annotations

import pytest

from poolwatch.testing.reachable import _reachable

LEFT = {
    "what setup_module puts into its module": """
        def setup_module():
            global session
            session = Session(engine)

        def teardown_module():
            session.close()

        def test_fine():
            session.execute(text("select 1"))

        def test_last():
            pass
        """,
    "a registry that the module makes": """
        registry = scoped_session(sessionmaker())

        def setup_module():
            registry.configure(bind=engine)

        def teardown_module():
            registry.remove()

        def test_fine():
            registry.execute(text("select 1"))

        def test_last():
            pass
        """,
    "what a function of the module closes": """
        sessions = {}

        def close_all():
            for session in sessions.values():
                session.close()

        @pytest.fixture(scope="module", autouse=True)
        def closing():
            yield
            close_all()

        def test_fine():
            sessions["new"] = Session(engine)
            sessions["new"].execute(text("select 1"))

        def test_last():
            pass
        """,
    "what a closure of a module closes": """
        sessions = []

        def closing_all():
            def close():
                while sessions:
                    sessions.pop().close()
            return close

        close_all = closing_all()

        @pytest.fixture(scope="module", autouse=True)
        def closing():
            yield
            close_all()

        def test_fine():
            sessions.append(Session(engine))
            sessions[0].execute(text("select 1"))

        def test_last():
            pass
        """,
    "what the application closes": """
        import shop

        @pytest.fixture(scope="module", autouse=True)
        def closing():
            yield
            shop.close()

        def test_fine():
            shop.session().execute(text("select 1"))

        def test_last():
            pass
        """,
    "what a class of the application closes": """
        from shop import Shop

        def teardown_module():
            Shop.close_all()

        def test_fine():
            Shop.opened.append(Session(engine))
            Shop.opened[0].execute(text("select 1"))

        def test_last():
            pass
        """,
    "what a class puts away by its name": """
        class TestIt:
            @classmethod
            def setup_class(cls):
                setattr(cls, "session", Session(engine))

            @classmethod
            def teardown_class(cls):
                getattr(cls, "session").close()

            def test_fine(self):
                self.session.execute(text("select 1"))

            def test_last(self):
                pass
        """,
    "what the class below has": """
        import unittest

        class Base(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.session = Session(engine)

            @classmethod
            def tearDownClass(cls):
                cls.session.close()

        class Derived(Base):
            @classmethod
            def setUpClass(cls):
                super().setUpClass()

            def test_fine(self):
                self.session.execute(text("select 1"))

            def test_last(self):
                pass
        """,
    "class cleanups": """
        import unittest

        class Cleaned(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.session = Session(engine)
                cls.addClassCleanup(cls.session.close)

            def test_fine(self):
                self.session.execute(text("select 1"))

            def test_last(self):
                pass
        """,
    "what a finalizer has": """
        @pytest.fixture(scope="module")
        def session(request):
            session = Session(engine)
            request.addfinalizer(lambda: session.close())
            return session.execute

        @pytest.fixture(scope="module")
        def execute(request):
            session = Session(engine)
            request.addfinalizer(session.close)
            def execute(statement):
                return Session.execute(session, statement)
            return execute

        @pytest.fixture(scope="module")
        def partial(request):
            import functools
            session = Session(engine)
            request.addfinalizer(functools.partial(Session.close, session))
            return lambda: kept[-1].execute(text("select 1")), kept.append(session)

        def test_fine(session, execute, partial):
            partial[0]()
            kept.clear()
            session(text("select 1"))
            execute(text("select 1"))

        def test_last():
            pass
        """,
    "what an async fixture has": """
        import pytest_asyncio

        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def execute():
            sessions = [Session(engine)]
            yield lambda statement: kept[0].execute(statement)
            sessions.pop().close()

        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def ready():
            sessions = [Session(engine)]
            kept.append(sessions[0])
            yield
            sessions.pop().close()
            kept.clear()

        @pytest.mark.asyncio(loop_scope="module")
        async def test_fine(ready, execute):
            execute(text("select 1"))

        def test_last():
            pass
        """,
}


SHOP = """
    from functools import cache

    @cache
    def session():
        return Session(engine)

    def close():
        session().close()

    class Shop:
        opened = []

        @classmethod
        def close_all(cls):
            while cls.opened:
                cls.opened.pop().close()
"""


def test_a_fixture_closes_what_its_code_names(suites):
    suites.write("shop", SHOP)
    for what, source in LEFT.items():
        suites.write(f"test_{what.replace(' ', '_')}", source)
    ran = suites.run()
    ran.accuses_nobody()
    assert ran.result.ret == 0, ran.text
    # while the first of a file is judged, the fixture stands
    assert len(ran.passed) == 2 * len(LEFT)


def test_a_fixture_of_the_session_closes_what_conftest_has(suites):
    suites.write(
        "conftest",
        """
        registry = scoped_session(sessionmaker())

        @pytest.fixture(scope="session", autouse=True)
        def database():
            registry.configure(bind=engine)
            yield
            registry.remove()

        def test_last():
            pass
        """,
    )
    suites.write(
        "test_it",
        """
        from conftest import registry

        def test_fine():
            registry.execute(text("select 1"))

        def test_last():
            pass
        """,
    )
    ran = suites.run()
    ran.accuses_nobody()
    assert ran.result.ret == 0, ran.text
    assert len(ran.passed) == 2  # while the first is judged, the fixture stands


SEEDED = """
    @pytest.fixture(scope="session")
    def session():
        {session}

    @pytest.fixture(scope="module")
    def seed(session):
        session.execute(text("select 1"))  # here

    @pytest.fixture(scope="class")
    def more(session):
        session.commit()
        session.execute(text("select 1"))  # here
"""
USERS = """
    class TestOne:
        def test_leaks(self, seed): pass

    class TestTwo:
        def test_fine(self, more): pass

    def test_last(): pass
"""


@pytest.mark.parametrize("args", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_fixture_leaves_it_with_a_wider_one(suites, args):
    suites.write(
        "conftest",
        SEEDED.format(session="with Session(engine) as session: yield session"),
    )
    suites.write("test_one", USERS)
    suites.write("test_two", USERS)
    ran = suites.run(*args)
    ran.accuses_nobody()
    assert ran.result.ret == 0, ran.text
    assert len(ran.passed) == 6


def test_a_fixture_answers_for_what_the_wider_one_never_closes(suites):
    suites.write("conftest", SEEDED.format(session="yield Session(engine)"))
    suites.write("test_one", "def test_leaks(seed): pass")
    suites.write("test_two", "def test_fine(): pass")
    ran = suites.run()
    ran.accuses_the_right_ones()
    assert "kept alive by" in ran.text
    assert "__loader__" not in ran.text  # pytest's leads to all of a run


STANDING = """
    import unittest

    leaked = []

    @pytest.fixture(scope="module", autouse=True)
    def standing():
        leaked.clear()
        yield engine
        engine.dispose()

    class TestIt:
        leaked = []

        @classmethod
        def setup_class(cls):
            cls.name = "it"

        @pytest.mark.allow_pool_leaks(reason="to the class")
        def test_allowed(self):
            self.leaked.append(engine.connect())

    class TestCase(unittest.TestCase):
        leaked = []

        @pytest.mark.allow_pool_leaks(reason="to the class")
        def test_allowed(self):
            self.leaked.append(engine.connect())

    @pytest.mark.allow_pool_leaks(reason="to the module")
    def test_allowed():
        leaked.append(engine.connect())

    def test_leaks():
        leaked.append(engine.connect())  # here

    def test_fine():
        pass
"""


def test_what_else_a_module_or_a_class_keeps_is_judged_at_once(suites):
    suites.write("test_it", STANDING)
    ran = suites.run("-x")
    ran.accuses_the_right_ones()
    assert ran.passed == [
        "TestCase::test_allowed",
        "TestIt::test_allowed",
        "test_allowed",
        "test_leaks",
    ], "it goes on to the end of the module"


@pytest.mark.parametrize(
    ("module", "followed"),
    [
        ("logging_setup", True),
        ("logging.handlers", False),
        ("_pytest.fixtures", False),
        ("poolwatch.ledger.ledger", False),
    ],
)
def test_only_objects_of_whole_packages_lead_nowhere(module, followed):
    """A module of the application may begin with the name of a package."""
    holder = type("Holder", (), {"__module__": module})()
    holder.session = object()
    wanted = id(holder.session)
    assert _reachable([holder], {wanted}) == ([wanted] if followed else [])
