"""Large data, hostile objects, changes meanwhile: all is seen, or the rest is named."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections import deque
from types import MethodType, ModuleType

import fix_references
import pytest
from fix_references import running
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

import poolwatch
from poolwatch.diagnosis.references.follow import Guide
from poolwatch.diagnosis.references.sweep import Progress, Sweep

pooled, taken = fix_references.pooled, fix_references.taken

KEPT = {}


@pytest.fixture(autouse=True)
def empty_cache():
    yield
    for session in KEPT.values():
        session.close()
    KEPT.clear()


def connected(engine):
    session = Session(engine)
    session.execute(text("select 1"))
    return session


class Node:
    def __init__(self, number=0):
        self.number = [number]
        self.next = None


class Slots:
    __slots__ = ("inner", "more")

    def __init__(self, number):
        self.inner = [number]
        self.more = {"more": self.inner}


def nested_dicts():
    data = []
    for number in range(300):
        inner = {}
        for level in range(20):
            inner = {"inner": [inner, number], "more": {"levels": [level]}}
        data.append(inner)
    return data


def rows():
    return [(number, str(number), None) for number in range(100_000)]


def instances():
    return {number: Node(number) for number in range(30_000)}


def slots():
    return {Slots(number) for number in range(20_000)}


def linked_list():
    first = last = Node()
    for _ in range(50_000):
        last.next = last = Node()
    return first


def linked_lists():
    first = last = []
    for _ in range(2_000):
        inner = [[0], {"more": [1]}]
        last.append(inner)
        last = inner
    return first


def graph():
    nodes = [Node(number) for number in range(20_000)]
    for node in nodes:
        node.next = random.choices(nodes, k=3)
    return nodes


def queue_of_jobs():
    return deque([[number] for number in range(50_000)])


DATA = [
    nested_dicts, rows, instances, slots, linked_list, linked_lists, graph,
    queue_of_jobs,
]  # fmt: skip


@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("first", [True, False])
def test_beside_large_data(taken, pooled, make, first):
    """A variable is found at a small cost, whatever is beside it."""

    def job(ready, stop):
        data = make() if first else None
        session = connected(pooled)
        data = data or make()
        ready.set()
        stop.wait()
        session.close()

    with running(job):
        result = taken.look(budget_s=2.0)
    path = result.paths["h1"]
    assert (path.in_hand, path.near) == (True, True)
    assert "local 'session'" in path.steps[0]


@pytest.mark.parametrize("make", DATA)
def test_all_of_large_data(taken, pooled, make):
    """Data that has no connection is followed to its end: that proves it."""

    def job(ready, stop):
        data = make()
        ready.set()
        stop.wait()
        del data

    KEPT["session"] = connected(pooled)
    with running(job):
        result = taken.look(budget_s=20.0)
    assert result.paths["h1"].kind == "global"
    assert result.unseen is None, result.unseen


@pytest.mark.parametrize("make", DATA)
def test_cut_short(taken, pooled, make):
    """What was not followed to its end is said, by name, and nothing is proven."""

    def job(ready, stop):
        data = make()
        ready.set()
        stop.wait()
        del data

    KEPT["session"] = connected(pooled)
    with running(job, "reporter"):
        result = taken.look(nodes=5_500)
    assert result.unseen is not None
    assert "threads: " in result.unseen
    assert "reporter" in result.unseen
    assert "not followed to the end" in result.unseen
    assert "enough objects were visited" in result.left_out


def test_large_module_hides_no_use(taken, pooled, monkeypatch):
    """Of a module that was not followed to its end nothing in use can be missed."""
    module = ModuleType("caches")
    module.__file__ = __file__
    module.cache = [Node(number) for number in range(200_000)]
    monkeypatch.setitem(sys.modules, "caches", module)
    connection = pooled.raw_connection()
    held = [connection.dbapi_connection]
    cell = {"proxy": connection}
    cell["self"] = cell  # only a cycle has it
    del connection, cell
    gc.disable()
    try:
        result = taken.look(nodes=100_000)
    finally:
        gc.enable()
    assert "h1" not in result.paths
    assert "caches" in result.left_out
    assert result.unseen is None, result.unseen
    del held
    gc.collect()


def test_one_of_many(taken, pooled):
    """A session that is an attribute of one of many objects is in hand."""

    def job(ready, stop):
        jobs = instances()
        jobs[17].next = connected(pooled)
        ready.set()
        stop.wait()
        jobs[17].next.close()

    with running(job):
        path = taken.path()
    assert path.in_hand
    assert path.near
    assert path.steps[1:] == (
        "an entry of a dict",
        "attribute 'next'",
        "its connection",
    )


def suspended(engine):
    session = connected(engine)
    yield session
    session.close()


def test_generator_behind_a_long_chain(taken, pooled):
    """However far away: it is a link, and what counts is where the chain begins."""

    def job(ready, stop):
        first = last = Node()
        for _ in range(20_000):
            last.next = last = Node()
        last.next = suspended(pooled)
        next(last.next)
        del last
        ready.set()
        stop.wait()
        del first

    with running(job):
        path = taken.path()
    assert path.in_hand
    assert path.near


def test_chain_behind_a_generator(taken, pooled):
    """What a suspended generator has is in use, however much it has beside it."""

    def parked():
        data = graph()
        holder = Node()
        holder.next = connected(pooled)
        yield data
        holder.next.close()

    def job(ready, stop):
        data = graph()
        data[-1].next = [*data[-1].next, generator := parked()]
        next(generator)
        del generator
        ready.set()
        stop.wait()
        del data

    with running(job):
        path = taken.path()
    assert path.in_hand
    assert path.near


def test_two_ways(taken, pooled):
    """The way that was found first is not the one that counts."""

    class Application:
        pass

    def job(ready, stop):
        application = Application()
        application.data = graph()
        application.services = {"reports": {"last": {"of": {"all": Node()}}}}
        session = connected(pooled)
        application.services["reports"]["last"]["of"]["all"].next = session
        application.requests = [Node(number) for number in range(2_000)]
        application.requests[5].next = {"stack": {"of": {"request": parked(session)}}}
        next(application.requests[5].next["stack"]["of"]["request"])
        del session
        ready.set()
        stop.wait()
        application.services.clear()

    def parked(session):
        yield
        session.close()

    with running(job):
        path = taken.path()
    assert path.in_hand
    assert path.near


def test_deep_stack(taken, pooled):
    """A stack that is too deep to be read as a whole was not seen."""
    limit = sys.getrecursionlimit()
    KEPT["session"] = connected(pooled)

    def job(ready, stop, frames=1_500):
        if frames:
            job(ready, stop, frames - 1)
        else:
            ready.set()
            stop.wait()

    sys.setrecursionlimit(5_000)
    try:
        with running(job, "deep one"):
            result = taken.look()
    finally:
        sys.setrecursionlimit(limit)
    assert result.unseen is not None
    assert "deep one not read in part" in result.unseen


def test_the_verdict_says_what_was_not_seen(tmp_path, monkeypatch):
    """Where a frame was not followed to its end nothing is called a leak."""
    monkeypatch.setenv("POOLWATCH_DIR", str(tmp_path))
    engine = create_engine(
        f"sqlite:///{tmp_path}/large.db", connect_args={"check_same_thread": False}
    )
    poolwatch.instrument(engine, long_after=0.1)

    def job(ready, stop):
        data = []
        for number in range(100_000):
            data = [data, number]  # nothing but lists: no place to go on from
        ready.set()
        stop.wait()
        del data

    try:
        with running(job, "report"):
            KEPT["session"] = connected(engine)
            deadline = time.monotonic() + 20
            while (process := poolwatch.snapshot().processes[0]).holds[0].held_s < 0.3:
                assert time.monotonic() < deadline
        (hold,) = process.holds
        unknown = [each for each in hold.evidence if each.startswith("not known")]
        assert hold.verdict == "long"
        assert unknown == [
            "not known whether it is in use: threads: report not followed to the end"
        ]
        assert not [each for each in process.findings if "leaked" in each.kind]
    finally:
        KEPT.pop("session").close()
        poolwatch.uninstrument(engine)
        engine.dispose()


# -- what changes meanwhile ----------------------------------------------------------


def test_what_changes_meanwhile(taken, pooled):
    """Another thread changes its containers all the time: nothing is raised."""
    changing = {"dict": {}, "set": set(), "list": [], "deque": deque(maxlen=3_000)}

    def job(ready, stop):
        session = connected(pooled)
        number = 0
        while not stop.is_set():
            number += 1
            changing["dict"][number] = [number]
            changing["set"].add((number, ()))
            changing["list"].append([number])
            changing["deque"].append([number])
            if number % 5_000 == 0:
                ready.set()
                for each in list(changing.values())[:3]:
                    each.clear()
        session.close()

    KEPT["leaked"] = connected(pooled)
    with running(job):
        for _ in range(10):
            result = taken.look(budget_s=1.0)
            assert result.paths["h2"].near
            assert "failed" not in (result.left_out or "")


def test_a_container_that_shrinks():
    """What was moved to where it had been read already was not seen."""
    guide, data = Guide(), [[[number]] for number in range(20_000)]
    progress = Progress([], set())
    step = Sweep(guide, progress, 0)
    assert not step.go([[data]], 5_000)
    assert not step.changed
    del data[:5_000]
    step = Sweep(guide, progress, 0)
    step.go([[data]], 5_000)
    assert step.changed


# -- hostile objects -----------------------------------------------------------------

CALLS = []


def recorded(name):
    def method(*arguments, **named):
        CALLS.append(name)
        raise SystemError(name)

    return method


SPECIAL = (
    "__getattr__", "__getattribute__", "__eq__", "__hash__", "__len__", "__iter__",
    "__bool__", "__repr__", "__str__", "__contains__", "__getitem__", "__reversed__",
    "__length_hint__", "__index__", "__call__", "__instancecheck__", "__sizeof__",
    "__reduce__", "__dir__", "__get__", "get", "items", "values", "keys", "copy",
)  # fmt: skip


def hostile(*bases, **more):
    """A class whose objects tell of every call."""
    names = {name: recorded(f"{bases}.{name}") for name in SPECIAL}
    names["__class__"] = property(recorded("__class__"))
    return type("Hostile", bases, {**names, **more})


Meta = type(
    "Meta",
    (type,),
    {
        "__eq__": recorded("Meta.__eq__"),
        "__hash__": recorded("Meta.__hash__"),
        "__subclasscheck__": recorded("Meta.__subclasscheck__"),
        "__instancecheck__": recorded("Meta.__instancecheck__"),
        "__module__": property(recorded("Meta.__module__")),
        "__name__": property(recorded("Meta.__name__")),
    },
)


def inside(kind, value, large):
    """A container with that value, which is hard to make of a hostile class."""
    one = kind.__new__(kind)
    others = [[number] for number in range(3_000 if large else 3)]
    if issubclass(kind, dict):
        for number, other in enumerate(others):
            dict.__setitem__(one, number, other)
        dict.__setitem__(one, "deep", value)
    elif issubclass(kind, deque):
        deque.extend(one, [*others, value])
    else:
        list.extend(one, [*others, value])
    return one


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("base", [object, dict, list, deque])
def test_hostile_objects(taken, pooled, base, large):
    """Nothing of them is called, neither beside a connection nor on the way to it."""
    kind = hostile(base) if base is not object else hostile(__slots__=("value",))

    def job(ready, stop):
        session = connected(pooled)
        if base is object:
            holder = kind.__new__(kind)
            object.__setattr__(holder, "value", [session])
        else:
            holder = inside(kind, session, large)
        odd = Meta("Odd", (), {})
        instance = odd()
        others = [hostile(__dict__=property(recorded("__dict__")))]
        others += [MethodType(kind.__new__(kind), 1), kind.__new__(kind)] * 1_000
        later = session.close
        session = None
        CALLS.clear()
        ready.set()
        stop.wait()
        later()
        del holder, others, instance

    with running(job):
        result = taken.look()
        calls = [*CALLS]
    assert calls == []
    assert result.unseen is None, result.unseen
    assert result.paths["h1"].near


def test_hostile_surroundings(taken, pooled, monkeypatch):
    """Threads, modules and namespaces with ideas of their own."""

    class Thread(threading.Thread):
        hostile = False

        @property
        def name(self):
            if Thread.hostile:
                CALLS.append("Thread.name")
                raise SystemError
            return threading.Thread.name.fget(self)

        @name.setter
        def name(self, value):
            threading.Thread.name.fset(self, value)

    class Globals(dict):
        get = __getitem__ = __len__ = __iter__ = recorded("globals")

    class Lazy(ModuleType):
        __getattr__ = recorded("Lazy.__getattr__")

    class Namespace:
        def __init__(self):
            self.inner = {}

        def __setitem__(self, key, value):
            self.inner[key] = value

        def __getitem__(self, key):
            return self.inner[key]

        items = keys = values = get = recorded("namespace")

    ready, stop = threading.Event(), threading.Event()
    source = "session = connected(pooled)\nready.set()\nstop.wait()\nsession.close()"

    def job():
        space = Namespace()
        common = Globals(__name__="odd", __builtins__=__builtins__)
        common.update(connected=connected, pooled=pooled, ready=ready, stop=stop)
        exec(source, common, space)

    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    odd = type("OfLazy", (), {"__module__": "lazy", "kept": [1]})
    thread = Thread(target=job)
    thread.start()
    assert ready.wait(10)
    CALLS.clear()
    Thread.hostile = True
    result = taken.look()
    Thread.hostile = False
    calls = [*CALLS]
    stop.set()
    thread.join(10)
    assert calls == []
    assert result.unseen is None, result.unseen
    assert result.paths["h1"].in_hand
    del odd


def test_time_for_others(taken, pooled):
    """Another thread goes on while large data is looked through."""

    def job(ready, stop):
        data = instances()
        ready.set()
        stop.wait()
        del data

    ticks = []
    KEPT["session"] = connected(pooled)
    over = threading.Event()

    def tick():
        while not over.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    with running(job):
        ticker.start()
        began = time.perf_counter()
        taken.look(budget_s=20.0)
        ended = time.perf_counter()
        over.set()
        ticker.join()
    assert sum(began < each < ended for each in ticks) > 3
