"""pool_churn: the rule by itself, and real pools that are made in the wrong place."""

from __future__ import annotations

import functools
import gc
import os
import threading
from dataclasses import replace

import asyncpg
import psycopg2.pool
import pytest
from fakes import pool as fake_pool
from fix_core import Look
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool, QueuePool

import poolwatch
from poolwatch.diagnosis.churn import churned
from poolwatch.ledger.pool_origins import LATEST, PoolOrigins, fingerprint
from poolwatch.model import Frame, PoolOrigin

SITE = Frame("/app/views.py", 12, "handler")
URL = "postgresql://me:***@db/orders"


def made(count=10, alive=0, *, ago=1.0, step=1.0, **changes):
    """So many made, one every ``step`` seconds, the last ``ago``."""
    latest = [ago + step * nth for nth in range(min(count, LATEST))][::-1]
    pools = tuple(f"p{nth}" for nth in range(alive))
    return PoolOrigin(SITE, URL, count, pools, alive, tuple(latest))._replace(**changes)


def stats(count, connections=1):
    """Figures of so many pools with so many idle connections each."""
    return [
        replace(fake_pool(), id=f"p{n}", idle=connections, checked_out=0)
        for n in range(count)
    ]


def findings():
    return [each for each in Look().process.findings if each.kind == "pool_churn"]


# -- the rule --------------------------------------------------------------------------


def test_many_that_pile_up():
    """Pools that are alive, each with a connection: said with place and numbers."""
    (finding,) = churned([made(6, alive=5)], stats(5, 2))
    assert (finding.kind, finding.severity, finding.pool) == (
        "pool_churn",
        "warning",
        "p4",
    )
    assert finding.sites == (SITE,)
    assert "views.py:12 in handler created 6 pools for " + URL in finding.text
    assert "5 alive now, with 10 connections" in finding.text
    assert "at most 5 alive at once" in finding.proof


def test_many_that_do_not_last():
    """Made again and again, none alive: the rate is enough."""
    (finding,) = churned([made(40, alive=0)], [])
    assert finding.pool is None
    assert "0 alive now, with 0 connections" in finding.text


def test_so_many_connections_are_critical():
    """Together they are a large part of what a server has."""
    (finding,) = churned([made(10, alive=10)], stats(10, 5))
    assert finding.severity == "critical"


@pytest.mark.parametrize(
    ("record", "pools"),
    [
        (made(1, alive=1), stats(1)),
        (made(3, alive=3), stats(3)),  # a configuration that was loaded anew, twice
        (made(4, alive=4), stats(4)),
        (made(7, alive=1), stats(1)),  # a handful of tests
        (made(7, alive=7), stats(7, 0)),  # never used
        (made(30, alive=1, step=3600), stats(1)),  # once an hour
        (made(40, alive=1, ago=3600.0), stats(1)),  # long over
        (made(40, 9, site=SITE._replace(function="<module>")), stats(9)),
        (made(40, 9, site=SITE._replace(function="<listcomp>")), stats(9)),
        (made(6, alive=5), []),  # of pools that are gone by now
    ],
)
def test_nothing_is_said(record, pools):
    """What a sound application may do."""
    assert churned([record], pools) == []


def test_fingerprints():
    """Arguments are compared by their plain values; nothing of them is kept."""
    one = {"host": "a", "server_settings": {"search_path": "x"}}
    assert fingerprint(one) == fingerprint(dict(reversed(one.items())))
    assert fingerprint(one) != fingerprint({**one, "host": "b"})
    assert fingerprint(one) != fingerprint(
        {**one, "server_settings": {"search_path": "y"}}
    )
    assert fingerprint({"ssl": object()}) == fingerprint({"ssl": object()})
    assert fingerprint(None) == fingerprint(object())


def test_places_are_bounded():
    """However many places make pools, what is remembered does not grow."""
    origins = PoolOrigins()
    for nth in range(1000):
        origins.note([SITE._replace(line=nth)], URL, None, f"p{nth}")
    assert len(origins.records(0.0)) == 128
    assert len(origins._by_pool) == 128
    for nth in range(1000):
        origins.forget_pool(f"p{nth}")
    assert origins._by_pool == {}


@pytest.mark.parametrize(("stack", "url"), [((), URL), ((SITE,), None)])
def test_what_nobody_can_be_told(stack, url):
    """A pool that no code of the user's makes, or on nobody knows what."""
    origins = PoolOrigins()
    origins.note(stack, url, None, "p1")
    assert origins.records(0.0) == []


# -- real pools ------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/test.db"


def handler(url, **settings):
    """What people write: an engine for each request."""
    engine = create_engine(url, poolclass=QueuePool, **settings)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return engine


def test_an_engine_per_request(instrument, url):
    """Its line is named, how many it made, and how many are alive."""
    instrument()
    kept = [handler(url) for _ in range(6)]
    (finding,) = findings()
    assert finding.severity == "warning"
    (site,) = finding.sites
    assert (site.file, site.function) == (__file__, "handler")
    assert "created 6 pools" in finding.text
    assert "6 alive now, with 6 connections" in finding.text
    for engine in kept:
        engine.dispose()
    assert findings() == []


def test_an_engine_per_request_that_is_dropped(instrument, url):
    """None is alive any more, and yet each request paid for it."""
    instrument()
    for _ in range(20):
        handler(url).dispose()
    gc.collect()
    (finding,) = findings()
    assert "created 20 pools" in finding.text
    assert "0 alive now" in finding.text


def test_instrumented_by_hand(instrument, url):
    """Where each new engine is instrumented is as good a place."""

    def get_engine():
        engine = create_engine(url, poolclass=QueuePool)
        instrument(engine)
        engine.connect().close()
        return engine

    kept = [get_engine() for _ in range(6)]
    (finding,) = findings()
    assert finding.sites[0].function == "get_engine"
    for engine in kept:
        engine.dispose()


def test_by_the_plugin(instrument, url):
    """The plugin is told of each engine as it is made."""
    kept = [handler(url, plugins=["poolwatch"]) for _ in range(6)]
    assert findings()[0].sites[0].function == "handler"
    for engine in kept:
        engine.dispose()


def test_a_psycopg2_pool_per_request(instrument, postgres):
    """The same of psycopg2's pools."""
    instrument()

    def report():
        return psycopg2.pool.SimpleConnectionPool(1, 2, postgres.dsn)

    kept = [report() for _ in range(6)]
    (finding,) = findings()
    assert finding.sites[0].function == "report"
    assert "6 alive now, with 6 connections" in finding.text
    for pool in kept:
        pool.closeall()


async def test_an_asyncpg_pool_per_request(instrument, postgres):
    """And of asyncpg's."""
    instrument()

    async def report():
        return await asyncpg.create_pool(postgres.dsn, min_size=1, max_size=1)

    kept = [await report() for _ in range(6)]
    (finding,) = findings()
    assert finding.sites[0].function == "report"
    for pool in kept:
        await pool.close()


# -- what is no churn ------------------------------------------------------------------


def test_tenants(instrument, tmp_path):
    """One engine for each tenant, made on demand: each has a database of its own."""
    instrument()
    kept = [handler(f"sqlite:///{tmp_path}/{nth}.db") for nth in range(12)]
    assert findings() == []
    for engine in kept:
        engine.dispose()


def test_tenants_by_arguments(instrument, postgres):
    """Or one that only the arguments of the connection tell."""
    instrument()
    kept = [
        handler(postgres.url(), connect_args={"options": f"-csearch_path=t{nth}"})
        for nth in range(6)
    ]
    assert findings() == []
    for engine in kept:
        engine.dispose()


async def test_asyncpg_tenants(instrument, postgres):
    """The same of asyncpg, whose settings are not in the URL."""
    instrument()

    async def pool_of(tenant):
        settings = {"search_path": tenant}
        return await asyncpg.create_pool(
            postgres.dsn, min_size=1, max_size=1, server_settings=settings
        )

    kept = [await pool_of(f"t{nth}") for nth in range(6)]
    assert findings() == []
    for pool in kept:
        await pool.close()


MAKE = "create_engine(url, poolclass=QueuePool)"
SETS = {
    "list": f"engines = [{MAKE} for _ in range(9)]",
    "condition": f"engines = [{MAKE} for n in range(18) if n % 2]",
    "dictionary": f"engines = list({{n: {MAKE} for n in range(9)}}.values())",
    "set": f"engines = list({{{MAKE} for n in range(9)}})",
    "generator": f"engines = list({MAKE} for _ in range(9))",
    "loop": f"engines = []\nfor _ in range(9):\n  engines.append({MAKE})",
    "class": f"class All:\n  those = [{MAKE} for _ in range(9)]\nengines = All.those",
    "class loop": f"class All:\n  those = []\n  for _ in range(9):\n"
    f"    those.append({MAKE})\nengines = All.those",
    "helper": f"def make():\n  return {MAKE}\nengines = [make() for _ in range(9)]",
    "lambda": f"make = lambda: {MAKE}\nengines = [make() for _ in range(9)]",
    "function": f"def make():\n  return [{MAKE} for _ in range(9)]\nengines = make()",
    "helper in a function": f"def make():\n  return {MAKE}\n"
    "def all_of_them():\n  return [make() for _ in range(9)]\nengines = all_of_them()",
}


@pytest.mark.parametrize("source", SETS.values(), ids=SETS)
def test_a_fixed_set(instrument, url, tmp_path, source):
    """A module or class makes its pools once, and a comprehension a set of them."""
    instrument()
    module = {
        "create_engine": create_engine, "QueuePool": QueuePool, "url": url,
        "__name__": "engines",
    }  # fmt: skip
    exec(compile(source, str(tmp_path / "engines.py"), "exec"), module)
    for engine in module["engines"]:
        engine.connect().close()
    assert len(module["engines"]) == 9
    assert findings() == []
    for engine in module["engines"]:
        engine.dispose()


def test_a_fixed_set_that_connects_as_it_is_made(instrument, postgres):
    """What psycopg2's pools do."""
    instrument()
    make = psycopg2.pool.SimpleConnectionPool
    pools = [make(1, 1, postgres.dsn) for _ in range(6)]
    assert findings() == []
    for pool in pools:
        pool.closeall()


def test_a_set_per_request(instrument, url):
    """A comprehension in a function that is called again and again."""
    instrument()
    kept = []

    def request():
        engines = [create_engine(url, poolclass=QueuePool) for _ in range(2)]
        engines[0].connect().close()
        kept.extend(engines)

    for _ in range(8):
        request()
    (finding,) = findings()
    assert finding.sites[0].function == "request"
    assert "created 16 pools" in finding.text
    for engine in kept:
        engine.dispose()


def test_a_cached_factory(instrument, url):
    """A factory that makes one engine is called as often as you like."""
    instrument()
    factory = functools.lru_cache(maxsize=None)(handler)
    for _ in range(50):
        factory(url)
    assert findings() == []
    factory(url).dispose()


def test_dispose(instrument, url):
    """``dispose()`` makes a new pool, and is no making of an engine."""
    instrument()
    engine = handler(url)
    for _ in range(50):
        engine.connect().close()
        engine.dispose()
    assert findings() == []


def test_an_application_factory(instrument, url):
    """A factory that a few tests call, and a configuration that is loaded anew."""
    instrument()
    kept = [handler(url) for _ in range(4)]
    assert findings() == []
    for engine in kept:
        engine.dispose()


def test_engines_without_a_pool(instrument, url):
    """NullPool is how one makes an engine for a single use."""
    instrument()
    for _ in range(20):
        engine = create_engine(url, poolclass=NullPool)
        engine.connect().close()
    assert findings() == []


def test_databases_in_memory(instrument):
    """Each is a database of its own, though their URLs are equal."""
    instrument()
    kept = []
    for _ in range(20):
        kept.append(create_engine("sqlite://"))
        kept[-1].connect().close()
    assert findings() == []


def test_engines_that_exist_already(instrument, url):
    """Nobody knows who made what was there before; surely not who instruments."""
    kept = [handler(url) for _ in range(12)]
    instrument()
    for engine in kept:
        engine.connect().close()
    assert findings() == []
    for engine in kept:
        engine.dispose()


def test_the_same_engine_again_and_again(instrument, url):
    """An engine that is instrumented often was made once."""
    engine = handler(url)
    other = QueuePool(lambda: None)
    instrument(other)  # something is instrumented all the time
    for _ in range(30):
        instrument(engine)
        engine.connect().close()
        poolwatch.uninstrument(engine)
    instrument(engine)
    assert findings() == []
    engine.dispose()


async def test_the_same_asyncpg_pool_again_and_again(instrument, postgres):
    """The same of a pool that cannot be remembered."""
    pool = await asyncpg.create_pool(postgres.dsn, min_size=1, max_size=1)
    other = QueuePool(lambda: None)
    instrument(other)  # something is instrumented all the time
    for _ in range(30):
        instrument(pool)
        await pool.execute("SELECT 1")
        poolwatch.uninstrument(pool)
    instrument(pool)
    assert findings() == []
    await pool.close()


def test_engines_for_several_purposes(instrument, url):
    """Names tell that they are meant to be several."""
    kept = []
    for purpose in ("read", "write", "reports", "admin", "jobs", "audit"):
        engine = create_engine(url, poolclass=QueuePool)
        instrument(engine, name=purpose)
        engine.connect().close()
        kept.append(engine)
    assert findings() == []
    for engine in kept:
        engine.dispose()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_worker(instrument, url):
    """What the parent has made is not the child's doing."""
    instrument()
    kept = [handler(url) for _ in range(6)]
    assert len(findings()) == 1
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            handler(url)
            code = 0 if findings() == [] else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    for engine in kept:
        engine.dispose()


def test_threads_make_pools_at_once(instrument, url):
    """Counting needs no lock, and misses none."""
    instrument()
    kept, start = [], threading.Barrier(4)

    def work():
        start.wait()
        kept.extend(handler(url) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (finding,) = findings()
    assert "20 alive now" in finding.text
    for engine in kept:
        engine.dispose()
