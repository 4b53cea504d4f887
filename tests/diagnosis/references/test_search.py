"""Who keeps a connection alive: every kind of root, with real pools."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from weakref import ref

import fix_references
import pytest
from fix_references import Taken, running
from sqlalchemy import text
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool

from poolwatch.diagnosis.references.search import find_paths
from poolwatch.model import Frame

pooled, taken = fix_references.pooled, fix_references.taken

KEPT = {}
"""A cache, as applications have them."""
CURRENT = contextvars.ContextVar("current_session")


@pytest.fixture(autouse=True)
def empty_cache():
    yield
    KEPT.clear()


def connected(session):
    session.execute(text("select 1"))
    return session


class Driver:
    def rollback(self): ...
    def close(self): ...


# -- running frames ------------------------------------------------------------------


def test_local_of_the_taker(taken, pooled):
    """A variable of the function that took it, in the words of its author."""
    connection = pooled.connect()
    line = sys._getframe().f_lineno + 1
    path = taken.path()
    assert (path.kind, path.owner) == ("running frame", "MainThread")
    assert (path.same_holder, path.is_user) == (True, True)
    assert path.in_hand
    assert path.near
    assert path.frame == Frame(__file__, line, "test_local_of_the_taker")
    assert path.steps == (
        f"local 'connection' of test_local_of_the_taker at test_search.py:{line}",
        "its connection",
    )
    connection.close()


def test_raw_connection(taken, pooled):
    """The proxy itself needs no further words."""
    raw = pooled.raw_connection()
    path = taken.path()
    assert len(path.steps) == 1
    assert path.steps[0].startswith("local 'raw' of test_raw_connection")
    raw.close()


@pytest.mark.parametrize("deep", [False, True])
def test_every_object_of_sqlalchemy(taken, pooled, deep):  # noqa: C901 - a list
    """Sessions, transactions, results: one step to the connection."""

    def session():
        return connected(Session(pooled))

    def bound_session():
        return Session(bind=pooled.connect())

    def transaction():
        return pooled.connect().begin()

    def result():
        return pooled.connect().execute(text("select 1"))

    def mappings():
        return pooled.connect().execute(text("select 1")).mappings()

    def savepoint():
        return connected(Session(pooled)).begin_nested()

    def bound_maker():
        return sessionmaker(bind=pooled.connect())

    for make in (
        session, bound_session, transaction, result, mappings, savepoint, bound_maker
    ):  # fmt: skip
        holder = {"thing": make()} if deep else make()
        path = taken.path()
        words = ["an entry of a dict"] if deep else []
        assert path.steps[1:] == (*words, "its connection"), make
        assert (path.kind, path.near) == ("running frame", True)
        holder = None
        gc.collect()
        taken.holds.clear()
    del holder


def test_used_by_another_thread(taken, pooled):
    """Handed over: the other thread's frame is told, not the taker's own."""
    connection = pooled.connect()

    def uses(ready, stop, conn=connection):
        ready.set()
        stop.wait()

    with running(uses, "consumer"):
        path = taken.path()
    assert (path.kind, path.owner) == ("running frame", "consumer")
    assert path.same_holder is False
    assert path.steps[0].startswith("local 'conn' of test_used_by_another_thread")
    connection.close()


def test_in_a_call_of_the_library(taken, pooled):
    """In the middle of a statement, the user's frame is told before SQLAlchemy's."""
    entered, leave = threading.Event(), threading.Event()

    def slow():
        entered.set()
        leave.wait(60)
        return 1

    def queries():
        with pooled.connect() as mine:
            mine.connection.driver_connection.create_function("slow", 0, slow)
            mine.execute(text("select slow()"))

    thread = threading.Thread(target=queries, name="slow one")
    thread.start()
    entered.wait(60)
    path = taken.path()
    leave.set()
    thread.join()
    assert path.owner == "slow one"
    assert (path.is_user, path.same_holder) == (True, True)
    assert path.frame.function == "queries"
    assert "local 'mine'" in path.steps[0]


def test_instances_and_containers(taken, pooled):
    """Attributes, slots, lists and deques that a running function has."""

    class Repository:
        def __init__(self, session):
            self.session = session

    class Slotted:
        __slots__ = ("inner",)

    def odd(session):
        """With the name of an attribute that is data."""
        made = Repository(None)
        vars(made)["a b"] = session
        return made

    for wrap, words in (
        (Repository, ["attribute 'session'"]),
        (lambda s: [s], ["an item of a list"]),
        (lambda s: deque([s]), ["an item of a deque"]),
        (lambda s: {"main": s}, ["an entry of a dict"]),
        (odd, ["an attribute"]),
    ):
        holder = wrap(connected(Session(pooled)))
        path = taken.path()
        assert list(path.steps[1:]) == [*words, "its connection"]
        assert path.in_hand
        assert path.near
        holder = None
        gc.collect()
        taken.holds.clear()
    slotted = Slotted()
    slotted.inner = Repository(connected(Session(pooled)))
    path = taken.path()
    assert path.steps[1:-1] == ("attribute 'inner'", "attribute 'session'")
    slotted.inner.session.close()
    del holder


# -- parked: generators and the like -------------------------------------------------


def get_db(engine):
    """As a yield dependency is written."""
    db = Session(engine)
    try:
        yield connected(db)
    finally:
        db.close()


def test_generator_of_a_running_function(taken, pooled):
    """A dependency that waits for the request to end is in hand."""

    def request():
        dependency = get_db(pooled)
        next(dependency)
        path = taken.path()
        dependency.close()
        return path

    path = request()
    assert path.kind == "generator"
    assert (path.in_hand, path.near) == (True, True)
    assert (path.is_user, path.same_holder) == (True, True)
    assert path.frame.function == "request"
    assert "local 'dependency'" in path.steps[0]
    assert path.steps[1].startswith("local 'db' of suspended get_db at ")


def test_generator_in_an_exit_stack(taken, pooled):
    """The stack's own machinery needs no words."""
    session = contextmanager(get_db)
    with ExitStack() as stack:
        stack.enter_context(session(pooled))
        path = taken.path()
    assert path.kind == "generator"
    assert path.in_hand
    assert path.near
    assert path.steps[1] == "an open context manager"
    assert path.steps[2].startswith("local 'db' of suspended get_db")
    assert path.steps[3:] == ("its connection",)


def test_what_outer_frames_have_is_in_nobodys_way(taken, pooled):
    """An application has more in hand than a search gets through."""
    everything = [[[] for _ in range(900)] for _ in range(30)]
    test_generator_in_an_exit_stack(taken, pooled)
    assert len(everything) == 30


def test_forgotten_generator(taken, pooled):
    """One that only a cache still has is in nobody's hand."""
    KEPT["rows"] = get_db(pooled)
    next(KEPT["rows"])
    path = taken.path()
    assert (path.kind, path.in_hand, path.frame) == ("generator", False, None)
    assert path.steps[0] == f"global 'KEPT' of module {__name__}"
    assert path.steps[1] == "an entry of a dict"
    KEPT.pop("rows").close()


# -- nobody's hand ---------------------------------------------------------------------


def test_cache_of_a_module(taken, pooled):
    """The user took it and went on."""
    KEPT["daily"] = connected(Session(pooled))
    path = taken.path()
    assert path.kind == "global"
    assert path.steps == (
        f"global 'KEPT' of module {__name__}",
        "an entry of a dict",
        "its connection",
    )
    assert (path.owner, path.same_holder, path.frame) == (None, None, None)
    assert not path.in_hand
    assert path.is_user
    KEPT.pop("daily").close()


class Reports:
    current = None


def test_class_attribute(taken, pooled):
    Reports.current = pooled.connect()
    path = taken.path()
    assert path.kind == "global"
    assert path.steps[0] == f"global 'Reports' of module {__name__}"
    assert path.steps[1] == "class attribute 'current' of Reports"
    Reports.current.close()
    Reports.current = None


def test_closure(taken, pooled):
    """A callback that was registered and never called."""

    def later(session):
        def callback():
            return session

        return callback

    KEPT["callback"] = later(connected(Session(pooled)))
    path = taken.path()
    assert (path.kind, path.in_hand) == ("closure", False)
    assert path.steps[2].startswith("closure variable 'session' of test_closure")
    KEPT.pop("callback")().close()


Registry = scoped_session(sessionmaker())


def test_thread_local_registry(taken, pooled):
    """scoped_session without remove(): the thread lives on with other work."""

    def job():
        Registry(bind=pooled)
        Registry.execute(text("select 1"))

    def loop(ready, stop):
        job()
        ready.set()
        stop.wait()
        Registry.remove()

    with running(loop):
        path = taken.path()
    assert (path.kind, path.in_hand) == ("thread-local", False)
    assert path.steps == (
        f"global 'Registry' of module {__name__}",
        "its value for one thread",
        "its connection",
    )


LOCAL = threading.local()


def test_thread_local(taken, pooled):
    def loop(ready, stop):
        LOCAL.connection = pooled.connect()
        ready.set()
        stop.wait()
        LOCAL.connection.close()

    with running(loop):
        path = taken.path()
    assert (path.kind, path.in_hand) == ("thread-local", False)
    assert path.steps[:2] == (
        f"global 'LOCAL' of module {__name__}",
        "its value for one thread",
    )


def test_stored_exception(taken, pooled):
    """Its traceback keeps the locals of functions that have ended."""

    def job():
        connection = pooled.connect()
        connection.execute(text("select 1"))
        raise ValueError("no")

    def loop(ready, stop):
        try:
            job()
        except ValueError as error:
            failed = error
        ready.set()
        stop.wait()
        failed.__traceback__.tb_next.tb_frame.f_locals["connection"].close()

    with running(loop):
        path = taken.path()
    assert (path.kind, path.owner) == ("exception", "worker")
    assert not path.in_hand
    assert path.frame.function == "loop"
    assert "local 'failed'" in path.steps[0]
    assert path.steps[1] == "the traceback of ValueError"
    assert "local 'connection' of test_stored_exception" in path.steps[2]
    assert path.steps[2].endswith(", which has ended")


def test_exception_being_handled(taken, pooled):
    """Nobody gave it a name, and it keeps the connection all the same."""

    def job():
        connection = pooled.connect()
        raise ValueError(connection is None)

    def loop(ready, stop):
        try:
            job()
        except ValueError:
            ready.set()
            stop.wait()

    with running(loop):
        path = taken.path()
    assert (path.kind, path.owner) == ("exception", "worker")
    assert path.steps[0] == "the exception that thread worker is handling"
    assert not path.in_hand
    gc.collect()


def test_last_exception(taken, pooled, monkeypatch):
    """What a prompt keeps for a post-mortem."""

    def job():
        connection = pooled.connect()
        raise ValueError(connection is None)

    try:
        job()
    except ValueError as error:
        monkeypatch.setattr(sys, "last_value", error, raising=False)
    path = taken.path()
    assert path.kind == "exception"
    assert path.steps[0] == "sys.last_value"


def test_result_of_a_finished_future(taken, pooled):
    """A session that a job returned, in a future that nobody asks any more."""
    with ThreadPoolExecutor(1) as executor:
        KEPT["future"] = executor.submit(lambda: connected(Session(pooled)))
    path = taken.path()
    assert (path.kind, path.in_hand) == ("task result", False)
    assert path.steps[1:3] == ("an entry of a dict", "attribute '_result'")
    KEPT.pop("future").result().close()


def test_the_worker_went_on(taken, pooled):
    """The loop's frame sees the cache of the application, but is not its owner."""

    class App:
        def __init__(self):
            self.services = {"reports": {"last": []}}

    app = KEPT["app"] = App()

    def job(app):
        app.services["reports"]["last"].append(connected(Session(pooled)))

    def loop(ready, stop):
        job(app)
        ready.set()
        stop.wait()

    with running(loop):
        path = taken.path()
        assert not (path.in_hand and path.near)
    app.services["reports"]["last"].pop().close()


def test_dropped(taken, pooled):
    """What is gone has no path."""
    pooled.connect()
    gc.collect()
    assert taken.look().paths == {}


# -- several at once -----------------------------------------------------------------


def test_a_thousand(taken, capsys):
    """All of them in one look, whatever they are kept by."""
    pool = taken.watch(QueuePool(Driver, pool_size=1000))
    mine = [pool.connect() for _ in range(900)]
    for number in range(100):
        KEPT[number] = pool.connect()
    began = time.perf_counter()
    result = taken.look(budget_s=10.0)  # what it took is printed, not judged
    took = time.perf_counter() - began
    assert len(result.paths) == 1000
    assert result.unseen is None
    kinds = [path.kind for path in result.paths.values()]
    assert (kinds.count("running frame"), kinds.count("global")) == (900, 100)
    with capsys.disabled():
        print(f"\n1,000 holds: {took * 1000:.1f} ms, left out: {result.left_out}")
    for connection in mine:
        connection.close()


def test_budget(taken, pooled):
    """A look that had to stop says so, and says that it proves nothing."""
    connection = pooled.connect()
    result = taken.look(budget_s=0.0)
    assert result.paths == {}
    assert result.unseen is not None
    assert "the search has run out of time" in result.left_out
    assert "threads: " in result.left_out
    result = taken.look(nodes=0)
    assert result.unseen is not None
    assert "enough objects" in result.left_out
    assert taken.look().unseen is None
    connection.close()


def test_large_container(taken, pooled):
    """A large cache is looked through to its end, or it is said that it was not."""
    KEPT["many"] = [[number] for number in range(50_000)]
    KEPT["many"].insert(20_000, connected(Session(pooled)))
    result = taken.look()
    (path,) = result.paths.values()
    assert path.steps[1:3] == ("an entry of a dict", "an item of a list")
    result = taken.look(nodes=20_000)
    assert result.paths == {}
    assert "test_search" in result.left_out
    assert "not followed to the end" in result.left_out
    KEPT["many"].pop(20_000).close()


def test_large_heap(taken, capsys):
    """The application is not stopped for long, however large it is."""
    pool = taken.watch(QueuePool(Driver, pool_size=20))
    KEPT["heap"] = [{"inner": [number], "more": {}} for number in range(333_000)]
    KEPT["c"] = pool.connect()
    gaps, stop = [], threading.Event()

    def ticks():
        while not stop.is_set():
            began = time.perf_counter()
            time.sleep(0.0002)
            gaps.append(time.perf_counter() - began)

    ticker = threading.Thread(target=ticks, name="ticker")
    ticker.start()
    time.sleep(0.2)
    quiet, gaps[:] = max(gaps), []
    for _ in range(3):
        result = taken.look(budget_s=10.0)
    stop.set()
    ticker.join()
    assert result.paths["h1"].kind == "global"
    with capsys.disabled():
        print(
            f"\na heap of a million: longest stop {max(gaps) * 1000:.1f} ms"
            f" (without a look {quiet * 1000:.1f} ms)"
        )
    KEPT["c"].close()


# -- manners -------------------------------------------------------------------------


class Canary:
    pass


def test_prolongs_no_life(taken, pooled):
    """What a running function drops after a look is gone at once: nothing of ours,
    and no dict of locals that the frame would keep, has it."""
    gone, canary = [], Canary()
    seen = ref(canary)

    def job(ready, stop):
        connection = pooled.connect()
        proxy = ref(connection._dbapi_connection)
        mine = Canary()
        weak = ref(mine)
        captured = [lambda: mine]  # noqa: F821 - deleted later
        taken.look()
        captured.clear()
        gone.append((proxy() is not None, weak() is not None))
        del connection, mine
        gone.append((proxy() is None, weak() is None))
        ready.set()
        stop.wait()

    def parked():
        inside = pooled.connect()
        yield ref(inside._dbapi_connection)
        del inside
        yield

    generator = parked()
    proxy = next(generator)
    gc.collect()
    gc.disable()
    try:
        with running(job):
            pass
        assert gone == [(True, True), (True, True)]
        taken.look()
        assert proxy() is not None
        next(generator)
        assert proxy() is None
        del canary
        assert seen() is None
    finally:
        gc.enable()


def test_leaves_nothing_behind(taken, pooled):
    """No object of ours, nor of the application, outlives the look in a cycle."""
    connection = connected(Session(pooled))
    KEPT["large"] = [{"inner": [[number]]} for number in range(20_000)]
    KEPT["connection"] = connection  # nobody's: all is looked at
    deep = KEPT["large"]
    del connection
    taken.look()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(20):
            find_paths(taken.holds, holders=taken.takers)
        assert gc.collect() < 50
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()
    assert deep.pop()
    KEPT["connection"].close()


def test_locals_in_the_application_hands(taken, pooled):
    """A dict from locals() is not emptied under its owner."""

    def job(ready, stop):
        connection = pooled.connect()
        mine = locals()
        ready.set()
        stop.wait()
        seen.update(mine)
        connection.close()

    seen = {}
    with running(job):
        assert "local" in taken.path().steps[0]
    assert "connection" in seen


def test_traced_function(taken, pooled):
    """Under a debugger's or profiler's function the variables stay what they are."""
    inside, go_on = threading.Event(), threading.Event()
    results = []

    def tracer(frame, event, arg):
        if event == "line" and "value" in frame.f_locals and not inside.is_set():
            inside.set()
            go_on.wait(60)
        return tracer if frame.f_code.co_name == "job" else None

    def job():
        value = pooled.connect()
        other = 1
        results.append((value is not None, other))
        value.close()

    def traced():
        sys.settrace(tracer)
        try:
            job()
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=traced)
    thread.start()
    assert inside.wait(60)
    taken.look()
    go_on.set()
    thread.join()
    assert results == [(True, 1)]


def test_runs_no_code_of_the_application(taken, pooled):  # noqa: C901 - a list
    """Objects that answer every question with an error are in nobody's way."""

    class Hostile:
        def __getattr__(self, name):
            raise SystemError(name)

        def __getattribute__(self, name):
            raise SystemError(name)

        def __eq__(self, other):
            raise SystemError

        def __hash__(self):
            raise SystemError

        def __len__(self):
            raise SystemError

        def __iter__(self):
            raise SystemError

        def __bool__(self):
            raise SystemError

    class HostileDict(dict):
        __len__ = __iter__ = items = values = keys = Hostile.__bool__

    class Meta(type):
        @property
        def __module__(cls):
            raise SystemError

    class Odd(metaclass=Meta):
        pass

    hostile = Hostile()
    fields = HostileDict()
    dict.__setitem__(fields, "deep", connected(Session(pooled)))
    KEPT["hostile"] = [hostile, fields, Odd(), Odd]
    del fields
    result = taken.look()
    assert result.left_out is None or "failed" not in result.left_out
    (path,) = result.paths.values()
    assert path.steps[3:5] == ("an entry of a dict", "its connection")
    dict.__getitem__(KEPT["hostile"][1], "deep").close()


def test_never_raises(pooled):
    """Whatever it is given."""
    connection = pooled.connect()
    proxy = connection._dbapi_connection
    assert find_paths({}, holders={}).paths == {}
    assert find_paths({"h": ref(proxy)}, holders={}).paths["h"].same_holder is None
    connection.close()


def test_taker_unknown_by_then(taken, pooled):
    """A thread that has ended is nobody's equal."""
    connection = pooled.connect()
    (hold,) = taken.holds
    taken.takers[hold] = None, None
    assert taken.path().same_holder is False
    connection.close()


def test_another_proxy_at_that_address():
    """An id alone proves nothing."""
    taken = Taken()
    pool = taken.watch(QueuePool(Driver))
    proxy = pool.connect()
    taken.holds["h1"] = ref(proxy)
    found = find_paths(taken.holds, holders=taken.takers).paths
    assert set(found) == {"h1"}
    proxy.close()
