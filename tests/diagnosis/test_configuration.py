"""Findings about the set-up of pools: the rules, and real pools at their lines."""

from __future__ import annotations

import sys

import fakes
import pytest
from fix_core import Look, book_of
from psycopg_pool import ConnectionPool, NullConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import poolwatch
from poolwatch.diagnosis.configuration import duplicate_pool, unlimited
from poolwatch.diagnosis.evidence import PoolEvidence, ServerEvidence
from poolwatch.diagnosis.findings import with_server_findings
from poolwatch.diagnosis.pools import unpooled
from poolwatch.model import Distribution, PoolSetup

DB, JOBS = fakes.frame("/srv/app/db.py:12"), fakes.frame("/srv/app/jobs.py:8")
URL = "postgresql+psycopg2://web:secret@db.internal/shop"


@pytest.fixture
def everything():
    poolwatch.instrument()
    yield
    poolwatch.uninstrument()


# -- without a limit -------------------------------------------------------------------


def endless(**changes):
    return fakes.pool(**{"made_at": DB, "size": 5, "max_overflow": -1, **changes})


def test_unlimited():
    (finding,) = unlimited([endless()])
    assert (finding.kind, finding.severity) == ("over_capacity", "warning")
    assert finding.sites == (DB,)
    assert finding.text.startswith("pool 'orders', made at app/db.py:12, has no limit")
    assert finding.proof.startswith("max_overflow=-1 means no limit; 1 connection out")
    (finding,) = unlimited([endless(size=0)])
    assert finding.proof.startswith("pool_size=0 means no limit, whatever max_overflow")


def test_one_finding_for_each_line():
    assert len(unlimited([endless(id="p1"), endless(id="p2")])) == 1
    assert len(unlimited([endless(), endless(made_at=JOBS)])) == 2
    unknown = [endless(id=key, made_at=None) for key in ("p1", "p2")]
    assert [finding.sites for finding in unlimited(unknown)] == [(), ()]
    assert unlimited(unknown)[0].proof.endswith("made before poolwatch was there")


@pytest.mark.parametrize(
    "pool",
    [
        fakes.pool(size=5, max_overflow=0),
        endless(kind="NullPool", size=None, max_overflow=None),
        endless(kind="NullConnectionPool", size=0),
        endless(kind="StaticPool", size=None, max_overflow=None),
        endless(url="sqlite:////srv/app.db"),
        endless(url="mysql://db/shop"),
        endless(url=None),
    ],
)
def test_not_unlimited(pool):
    assert unlimited([pool]) == []


def test_a_server_that_is_read_tells_it_once():
    """The finding about the server includes what the process says."""

    def told(*pools, sessions):
        status = fakes.server_status(
            *(pool.id for pool in pools),
            identity="one",
            max_connections=100,
            reserved=3,
            sessions=sessions,
        )
        process = fakes.process(
            pools=pools, servers=(status,), findings=tuple(unlimited(pools))
        )
        (result,) = with_server_findings([ServerEvidence(process)])
        return [finding for finding in result.findings if finding.sites]

    (finding,) = told(endless(), sessions=20)
    assert finding.severity == "warning"
    (finding,) = told(endless(), sessions=97)
    assert finding.severity == "critical"
    assert finding.text.startswith("pool 'orders', made at app/db.py:12, has no limit;")
    (finding,) = told(fakes.pool(size=98, max_overflow=2, made_at=JOBS), sessions=9)
    assert "made at app/jobs.py:8, can open 100 connections by itself" in finding.text
    null = endless(id="null", kind="NullPool", size=None, max_overflow=None)
    (finding,) = told(fakes.pool(made_at=JOBS), null, sessions=97)
    assert finding.text.startswith("the pools of one process can open 10 connections;")
    half = [fakes.pool(key, size=60, max_overflow=0, made_at=DB) for key in "ab"]
    (finding,) = told(*half, sessions=9)
    assert finding.sites == (DB,)
    assert finding.text.startswith("the pools of one process can open 120 connections;")


# -- twice -----------------------------------------------------------------------------


def twin(name, made_at, kind="QueuePool", **changes):
    stats = fakes.pool(name, made_at=made_at, url=URL, kind=kind)
    setup = PoolSetup("same", False, 60.0, 1.0)._replace(**changes)
    return PoolEvidence(stats, setup=setup)


def test_duplicate_pool():
    (finding,) = duplicate_pool([twin("p1", DB), twin("p2", JOBS, age_s=30.0)])
    assert (finding.kind, finding.severity) == ("duplicate_pool", "info")
    assert finding.sites == (DB, JOBS)
    assert "made at app/db.py:12 and app/jobs.py:8" in finding.text
    assert "5 + 5 connections open of 20 together" in finding.proof


@pytest.mark.parametrize(
    "other",
    [
        twin("p2", DB),
        twin("p2", None),
        twin("p2", JOBS, purpose="other"),
        twin("p2", JOBS, used_s=None),
        twin("p2", JOBS, age_s=9999.0, used_s=800.0),
        twin("p2", JOBS, age_s=300.0, used_s=90.0),
        twin("p2", JOBS, kind="NullPool"),
        twin("p2", JOBS, own_creator=True),
    ],
    ids=[
        "one line",
        "unknown line",
        "other options",
        "never used",
        "used long ago",
        "replaced by the other",
        "keeps nothing",
        "a creator of its own",
    ],
)
def test_not_a_duplicate(other):
    assert duplicate_pool([twin("p1", DB), other]) == []


# -- a connection for every checkout ---------------------------------------------------


def worn(**changes):
    """A NullPool that has spent 3 s on 100 connections."""
    counts = fakes.counters(checkouts=100, checkins=100, connects=100, closes=99)
    opened = Distribution(100, 3.0, 0.03, 0.03, 0.03, 0.03)
    null = {"kind": "NullPool", "size": None, "max_overflow": None, "made_at": DB}
    return fakes.pool(counters=counts, create_s=opened, **{**null, **changes})


def test_null_pool_costs():
    null = worn()
    (finding,) = unpooled(null, PoolSetup(None, False, 60.0, 1.0))
    assert (finding.severity, finding.sites) == ("info", (DB,))
    assert finding.text == (
        "pool 'orders', made at app/db.py:12, opens a connection for every checkout: "
        "3.0s spent connecting so far, 30 ms each time"
    )
    assert "PgBouncer" in finding.remedy
    assert unpooled(null, PoolSetup(None, True, 60.0, 1.0)) == []
    assert unpooled(null, PoolSetup(None, False, 1.0, 1.0)) == []
    long_jobs = worn(hold_s=fakes.times(30.0, count=100))
    assert unpooled(long_jobs, PoolSetup(None, False, 60.0, 1.0)) == []


# -- real pools ------------------------------------------------------------------------


def made(watch=None):
    return [pool.made_at.line for pool in Look().process.pools if pool.made_at]


def here():
    return sys._getframe(1).f_lineno


def test_the_line_that_made_a_pool(everything):
    kept = [
        create_engine(URL),
        create_async_engine("postgresql+asyncpg://db/shop"),
        create_engine(URL, poolclass=NullPool),
        ConnectionPool("postgresql://db/shop", open=False),
        NullConnectionPool("postgresql://db/shop", open=False),
    ]
    assert made() == [here() - n for n in (6, 5, 4, 3, 2)]
    assert len(kept) == 5


def test_the_line_of_a_pool_that_is_instrumented_afterwards(instrument):
    engine = create_engine(URL)
    instrument(engine)
    assert made() == [here() - 2]


def test_a_caller_made_it(instrument):
    def watch(target):
        instrument(target)

    engine = create_engine(URL)
    watch(engine)
    assert made() == [here() - 2]


def test_the_plugin_knows_the_line():
    engine = create_engine(URL, plugins=["poolwatch"])
    assert made() == [here() - 1]
    poolwatch.uninstrument(engine)


def test_an_unknown_line_is_not_made_up(instrument):
    instrument(next(iter([create_engine(URL)])))
    assert made() == []


def purposes(*pools):
    return len({book_of(pool).setup.purpose for pool in pools})


def test_options_tell_pools_of_psycopg_apart(everything):
    def pool(**options):
        return ConnectionPool("postgresql://db/shop", open=False, **options)

    plain = pool()
    assert purposes(plain, pool()) == 1
    assert purposes(plain, pool(kwargs={"autocommit": True})) == 2
    assert purposes(plain, pool(configure=print)) == 2
    assert purposes(plain, pool(max_size=9)) == 2


def test_options_tell_engines_apart(everything):

    plain = create_engine(URL)
    others = [
        create_engine(URL, pool_size=2),
        create_engine(URL, isolation_level="AUTOCOMMIT"),
        create_engine(URL, pool_logging_name="admin"),
        create_engine(URL, connect_args={"options": "-c search_path=a"}),
        create_engine(URL, execution_options={"schema_translate_map": {None: "a"}}),
    ]
    assert purposes(plain, create_engine(URL, pool_pre_ping=True)) == 1
    assert all(purposes(plain, other) == 2 for other in others)
