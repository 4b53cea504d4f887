"""The call site is the user's own line, and nobody is shown another's callers."""

from __future__ import annotations

import contextlib
import functools
import sys
import sysconfig
import textwrap
import threading
import types

import pytest

from poolwatch.model import Frame
from poolwatch.stacks.capture import (
    MAX_FRAMES,
    CallSites,
    CapturedStack,
    pairs_of,
)
from poolwatch.stacks.code_owner import PROJECT, CodeOwner, code_owner_of, home_of
from poolwatch.stacks.outer_frames import extended


@pytest.fixture
def sites():
    return CallSites()


@pytest.fixture
def tree():
    return CallSites()


def caught(sites):
    return sites.capture(sys._getframe(1))


def names(stack):
    return [frame.function for frame in stack.frames()]


def load(source, file, module="app"):
    """Code that claims to come from ``file``, in a module of that name."""
    scope = {"__name__": module, "caught": caught}
    exec(compile(textwrap.dedent(source), file, "exec"), scope)
    return types.SimpleNamespace(**scope)


# -- whose code ----------------------------------------------------------------------

LIB = sysconfig.get_paths()["stdlib"]


@pytest.mark.parametrize(
    ("file", "module", "owner"),
    [
        ("/srv/app/orders.py", "orders", CodeOwner.USER),
        ("orders.py", "__main__", CodeOwner.USER),
        (f"{LIB}/threading.py", "threading", CodeOwner.PLUMBING),
        (f"{LIB}-of-mine/work.py", "work", CodeOwner.USER),
        (f"{LIB}/site-packages/sqlalchemy/pool.py", "sqlalchemy.p", CodeOwner.PLUMBING),
        (f"{LIB}/site-packages/fastapi/routing.py", "fastapi.r", CodeOwner.PLUMBING),
        (f"{LIB}/site-packages/shop/orders.py", "shop.orders", CodeOwner.PACKAGE),
        ("/usr/lib/python3/dist-packages/shop/a.py", "shop.a", CodeOwner.PACKAGE),
        ("<string>", "__main__", CodeOwner.USER),
        ("<stdin>", "__main__", CodeOwner.USER),
        ("<frozen importlib._bootstrap>", "importlib", CodeOwner.PLUMBING),
        ("<string>", "sqlalchemy.orm", CodeOwner.PLUMBING),
        ("<string>", None, CodeOwner.USER),
        ("", "", CodeOwner.USER),
        (f"{LIB}/site-packages/xdist/remote.py", "__channelexec__", CodeOwner.PLUMBING),
    ],
)
def test_owner(file, module, owner):
    """Installed code, the standard library and databases' packages are not the
    user's; a directory that only begins like one of them is."""
    assert code_owner_of(file, module) is owner


@pytest.mark.parametrize(
    ("file", "home"),
    [
        (f"{LIB}/site-packages/sqlalchemy/pool.py", None),
        (f"{LIB}/dist-packages/falcon.py", None),
        (r"C:\venv\Lib\site-packages\flask\app.py", None),
        (r"C:\venv\Lib\site-packages\shop\flask.py", "shop"),
        (f"{LIB}/site-packages/shop/orders.py", "shop"),
        (f"{LIB}/threading.py", None),
        ("/home/me/shop/orders.py", PROJECT),
        ("/home/me/site-packages", PROJECT),
        ("<stdin>", PROJECT),
        ("<string>", None),
    ],
)
def test_whose_code_it_is_by_the_place_alone(file, home):
    assert home_of(file, "take_it") == home
    assert home_of("<string>", "<module>") == PROJECT


def test_a_neighbour_of_poolwatch():
    """A project called poolwatch-something is not taken for poolwatch itself."""
    import poolwatch

    home = poolwatch.__file__.rpartition("/")[0]
    assert (
        code_owner_of(f"{home}/agent/instrument.py", "poolwatch.agent.instrument")
        is CodeOwner.PLUMBING
    )
    assert code_owner_of(f"{home}_shop/agent.py", "poolwatch_shop") is CodeOwner.USER
    assert (
        code_owner_of(f"{home}/commands/demo/app/etl.py", "poolwatch.commands.demo.app")
        is CodeOwner.USER
    )
    assert (
        code_owner_of(f"{home}/commands/demo/supervisor.py", "poolwatch.commands.demo")
        is CodeOwner.PLUMBING
    )


# -- one stack -------------------------------------------------------------------------


def test_line_and_function(sites):
    """The site is this very line."""
    stack = caught(sites)
    here = sys._getframe().f_lineno - 1
    assert stack.site() == Frame(__file__, here, sys._getframe().f_code.co_name)
    assert stack.frames()[0] == stack.site()


@pytest.mark.parametrize("depth", [0, 1, 5, 6, 7, 8, 9, 15, 16, 17, 40, 500])
def test_every_depth(sites, depth):
    """From shallow to deep recursion: the site is exact, what is shown is the stack as
    it was, its length bounded."""

    def dive(left):
        return dive(left - 1) if left else (caught(sites), pairs_of(sys._getframe()))

    for _ in range(10):
        stack, pairs = dive(depth)
        assert stack.site().function == "dive"
        frames = stack.frames()
        assert len(frames) <= MAX_FRAMES
        assert [f.function for f in frames] == [
            code.co_name for code, _ in pairs[: len(frames)]
        ]
        assert len(frames) >= min(8, depth)


RUN = ["run", "_bootstrap_inner", "_bootstrap"]


@pytest.mark.parametrize("depth", range(1, 20))
def test_a_thread_of_any_depth(sites, depth):
    """A stack that ends soon, as a thread's does, is whole; also when a longer one has
    begun like it."""

    def bottom():
        return caught(sites)

    source = "def step(f, left):\n    return step(f, left - 1) if left else f()\n"
    step = load(source, "/srv/app/step.py").step
    got = []
    for _ in range(8):
        step(bottom, depth)
        thread = threading.Thread(target=lambda: got.append(step(bottom, depth)))
        thread.start()
        thread.join()
    for stack in got:
        functions = names(stack)
        whole = ["bottom", *["step"] * (depth + 1), "<lambda>", *RUN]
        assert functions == whole[: len(functions)]
        assert len(functions) >= min(8, len(whole))


def test_nearest_user_code_wins(sites):
    """Frameworks and helpers around: the site is the user's frame nearest to the
    pool."""
    orm = load(
        "def execute(s):\n    return caught(s)\n",
        f"{LIB}/site-packages/sqlalchemy/orm.py",
        "sqlalchemy.orm",
    )
    mine = load("def handler(call, s):\n    return call(s)\n", "/srv/app/web.py")
    framework = load(
        "def route(handler, *rest):\n    return handler(*rest)\n",
        f"{LIB}/site-packages/fastapi/routing.py",
        "fastapi.routing",
    )
    stack = framework.route(mine.handler, orm.execute, sites)
    assert stack.site() == Frame("/srv/app/web.py", 2, "handler")


def test_an_installed_application(sites):
    """An application in site-packages is the site when nothing outside is."""
    app = load(
        "def job(s):\n    return caught(s)\n",
        f"{LIB}/site-packages/shop/jobs.py",
        "shop.jobs",
    )
    got = []

    def start():  # a thread's stack has the standard library below only
        thread = threading.Thread(target=lambda f, s: got.append(f(s)))
        thread._target = app.job
        thread._args = (sites,)
        thread.run = functools.partial(run, thread)
        thread.start()
        thread.join()

    run = load(
        "def run(t):\n    t.got = t._target(*t._args)\n",
        f"{LIB}/threading.py",
        "threading",
    ).run
    thread = threading.Thread()
    thread._target, thread._args = app.job, (sites,)
    thread.run = functools.partial(run, thread)
    thread.start()
    thread.join()
    assert thread.got.site() == Frame(f"{LIB}/site-packages/shop/jobs.py", 2, "job")


def test_code_without_a_proper_module(sites):
    """Code run by exec() with odd globals is captured like any other."""
    scope = {"caught": caught, "sites": sites, "__name__": ["not a name"]}
    exec("stack = caught(sites)", scope)
    assert scope["stack"].site().file == "<string>"


@pytest.mark.parametrize("globals_", [{}, {"__name__": ["not a name"]}])
def test_a_walk_ends_at_the_bottom_whatever_it_meets(globals_):
    def runner():
        scope = {"caught": caught, "sites": sites, **globals_}
        exec("stack = caught(sites)", scope)
        return scope["stack"]

    sites = CallSites(end_codes={id(runner.__code__): runner.__code__})
    for _ in range(2):
        assert runner().frames()[-1].function == "runner"


def test_a_call_site_is_not_what_a_library_has_generated():
    """SQLAlchemy 2.0 wraps the methods of a Session in functions made of a string."""
    generated = {"caught": caught, "__name__": "sqlalchemy.orm.session"}
    exec("def _connection_for_bind(sites):\n    return caught(sites)", generated)

    def take():
        return generated["_connection_for_bind"](sites)

    sites = CallSites()
    stack = take()
    assert "_connection_for_bind" in [frame.function for frame in stack.frames()]
    assert stack.site().function == "take"


def test_twins(tree):
    """Functions of the same shape, and copies of one file, are told apart every
    time, and do not push each other out."""
    source = "def take(s):\n    return caught(s)\n"
    twins = {
        f"/srv/app/{name}.py": load(source, f"/srv/app/{name}.py") for name in "abcdef"
    }
    stacks = {file: set() for file in twins}
    for _ in range(20):
        for file, twin in twins.items():
            stack = twin.take(tree)
            assert stack.site().file == file
            stacks[file].add(stack)
    assert [len(each) for each in stacks.values()] == [1] * 6


def test_two_callers_are_not_shown_each_others(sites):
    """Two callers that share the nearest frames: neither is shown the other's outer
    frames when their stacks have been compared."""

    def shared(depth):
        return shared(depth - 1) if depth else caught(sites)

    def one():
        return shared(10)

    def two():
        return shared(10)

    for _ in range(3):
        one_path, two_path = one(), two()
    assert "two" not in names(one_path)
    assert "one" not in names(two_path)
    assert one_path.site() == two_path.site()


def test_a_late_second_caller_is_found_out(tree):
    """A caller that turns up after the tail was trusted: its running stack wins over
    the remembered one, and the next comparison cuts the tail."""

    def shared(depth):
        if depth:
            return shared(depth - 1)
        stack = caught(tree)
        live = tuple(Frame(c.co_filename, 0, c.co_name) for c, _ in [])
        return stack, live

    def usual():
        return shared(10)

    def late():
        return shared(10)

    for _ in range(10):
        stack, _ = usual()
    assert "usual" in names(stack)
    stack.recheck_tail()
    stack, _ = late()
    assert "usual" not in names(stack)
    assert "late" not in names(stack)


def frames_of(text):
    return tuple(_FRAMES.setdefault(name, Frame("f.py", 1, name)) for name in text)


_FRAMES: dict[str, Frame] = {}


@pytest.mark.parametrize(
    ("near", "tail", "live", "shown"),
    [
        ("ab", "cd", "", "abcd"),  # the holder has gone
        ("ab", "cd", "xbcde", "abcde"),  # still in it, and more is known now
        ("ab", "", "xbcde", "abcde"),
        ("ab", "cd", "xbcz", "abc"),  # they disagree: what they share
        ("ab", "cd", "xbz", "ab"),
        ("ab", "cd", "xyz", "abcd"),  # it is elsewhere: nothing can be told
        ("ab", "cd", "bxbcd", "abcd"),  # recursion: not clear which
        ("", "", "abc", ""),
    ],
)
def test_the_far_end(near, tail, live, shown):
    """The running stack adds callers, and never contradicts: what is not certain is
    left out."""
    assert extended(*map(frames_of, (near, tail, live))) == frames_of(shown)


# -- bounds ----------------------------------------------------------------------------


def test_many_call_sites_are_forgotten_again(sites):
    """10,000 generated functions: each is seen right, few are remembered."""
    import gc
    import weakref

    def nodes():
        gc.collect()
        return sum(type(each) is CapturedStack for each in gc.get_objects())

    codes = []
    before = nodes()
    for number in range(10_000):
        scope = {"caught": caught, "s": sites, "__name__": "generated"}
        source = f"def f{number}():\n    return caught(s)\nstack = f{number}()"
        exec(compile(source, "/srv/app/generated.py", "exec"), scope)
        assert scope["stack"].site().function == f"f{number}"
        if number % 100 == 0:
            codes.append(weakref.ref(scope[f"f{number}"].__code__))
    del scope
    assert nodes() - before < 2_000
    alive = sum(code() is not None for code in codes)
    assert alive <= 20  # 2,000 numbers in a row contain so many hundreds


def test_a_stack_that_is_kept_keeps_no_others(sites):
    """A hold that is out for ever keeps its own stack only, not the tree it was in."""
    import gc

    kept = []
    for number in range(6_000):
        scope = {"caught": caught, "s": sites, "__name__": "generated"}
        source = f"def f{number}():\n    return caught(s)\nstack = f{number}()"
        exec(compile(source, "/srv/app/generated.py", "exec"), scope)
        if number % 100 == 0:
            kept.append(scope["stack"])
    gc.collect()
    alive = [each for each in gc.get_objects() if type(each) is CapturedStack]
    assert len(alive) < 2_000


# -- through real pools ------------------------------------------------------


def test_the_ways_people_write_it(instrument, sqlite):  # noqa: C901
    """Core, ORM, scoped sessions, dependencies, decorators, lambdas, methods, exec'd
    code: always the user's own function nearest to the pool."""
    from sqlalchemy import text
    from sqlalchemy.orm import Session, scoped_session, sessionmaker

    engine = sqlite()
    watch = instrument(engine)
    factory = sessionmaker(engine)

    def site():
        (hold,) = watch.holds()
        assert hold.site in hold.stack
        return hold.site

    def core():
        with engine.connect():
            return site()

    def begun():
        with engine.begin():
            return site()

    def raw():
        connection = engine.raw_connection()
        try:
            return site()
        finally:
            connection.close()

    def orm():
        with Session(engine) as session:
            session.execute(text("select 1"))
            return site()

    def made():
        with factory() as session, session.begin():
            session.scalar(text("select 1"))
            return site()

    def scoped():
        registry = scoped_session(factory)
        try:
            registry.execute(text("select 1"))
            return site()
        finally:
            registry.remove()

    @contextlib.contextmanager
    def dependency():
        with engine.connect() as connection:
            yield connection

    def uses_dependency():
        with dependency():
            return site()

    def decorated(function):
        @functools.wraps(function)
        def wrapper():
            with engine.connect():
                return function()

        return wrapper

    class Repository:
        def method(self):
            with engine.connect():
                return site()

    def in_lambda():
        connect = lambda: engine.connect()  # noqa: E731, PLW0108
        with connect():
            return site()

    def multi_line():
        with engine.connect(
            # a comment
        ):
            return site()

    for function in (core, begun, raw, orm, made, scoped, Repository().method):
        assert site_of(function).function == function.__name__, function
    assert site_of(uses_dependency).function == "dependency"
    assert site_of(decorated(core_of_nothing(site))).function == "wrapper"
    assert site_of(in_lambda).function == "<lambda>"
    assert multi_line().line == multi_line.__code__.co_firstlineno + 1
    scope = {"engine": engine, "site": site, "__name__": "typed"}
    exec("def typed():\n  with engine.connect():\n    return site()", scope)
    assert scope["typed"]() == Frame("<string>", 2, "typed")


def site_of(function):
    return function()


def core_of_nothing(site):
    def nothing():
        return site()

    return nothing


def test_a_later_look_is_told_right(instrument, sqlite):
    """Figures begin with the pool, whether or not the agent listened then."""
    from poolwatch.agent.instrument import agent, instrument_without_agent, uninstrument

    instrument_without_agent()
    try:
        engine = sqlite()
        engine.connect().close()
        held = engine.connect()
        pools = agent.source.snapshot().processes[0].pools
        (pool,) = [pool for pool in pools if pool.id == agent.pools.id_of(engine)]
        assert (pool.counters.checkouts, pool.counters.checkins) == (2, 1)
        instrument(engine)
        engine.connect().close()
        (process,) = agent.source.snapshot().processes
        (hold,) = process.holds
        assert hold.site.function == "test_a_later_look_is_told_right"
        assert sum(site.hold_s.count for site in process.sites) == 2
        held.close()
        (process,) = agent.source.snapshot().processes
        assert sum(site.hold_s.count for site in process.sites) == 3
        assert not process.holds
    finally:
        uninstrument()
