"""Django's database connections: one per alias and thread, with and without a pool."""

from __future__ import annotations

import asyncio
import gc
import itertools
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import django
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.cache import cache
from django.core.signals import request_finished, request_started
from django.db import (
    close_old_connections,
    connection,
    connections,
    models,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper
from fix_core import Look
from helpers import line_of, until

import poolwatch
from poolwatch.agent.instrument import agent

if not settings.configured:
    default = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    settings.configure(DATABASES={"default": default})
    django.setup()


class Account(models.Model):
    class Meta:
        app_label = "shop"
        db_table = "account"


pytestmark = pytest.mark.filterwarnings(
    # what psycopg says of the connection of a thread that has ended
    "ignore:.*was deleted while still open.*:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

FILE = Path(__file__)
_numbers = itertools.count()
_DEFAULTS = {
    "ATOMIC_REQUESTS": False,
    "AUTOCOMMIT": True,
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": False,
    "OPTIONS": {},
    "TIME_ZONE": None,
    "USER": "",
    "PASSWORD": "",
    "HOST": "",
    "PORT": "",
    "TEST": {},
}


@pytest.fixture
def database(tmp_path, request):
    """Adds a database to the settings; returns its alias."""
    aliases = []

    def add(kind="sqlite", **given):
        alias = f"shop{next(_numbers)}"
        aliases.append(alias)
        if kind == "sqlite":
            made = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "db"}
        else:
            server = request.getfixturevalue("postgres")
            made = {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": server.database,
                "USER": server.user,
                "HOST": server.host,
                "PORT": str(server.port),
                "PASSWORD": "hunter2",
            }
        connections.settings[alias] = _DEFAULTS | made | given
        return alias

    yield add
    for alias in aliases:
        connections[alias].close()
        getattr(connections[alias], "close_pool", lambda: None)()
        del connections[alias]
        del connections.settings[alias]
    gc.collect()


@pytest.fixture(params=["sqlite", "postgres"])
def alias(database, request):
    """A database of each kind."""
    return database(request.param)


def query(alias, sql="select 1"):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)  # query
        return cursor.fetchone()[0] if cursor.description else None


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args, name="beside")
    thread.start()
    thread.join()


def lines(holds):
    return [hold.site.line for hold in holds]


@pytest.fixture
def on_connect():
    """Connects a receiver of ``connection_created``."""
    receivers = []

    def connect(receiver):
        receivers.append(receiver)
        connection_created.connect(receiver)

    yield connect
    for each in receivers:
        connection_created.disconnect(each)


# -- holds -------------------------------------------------------------------------


def test_held_until_it_is_closed(alias, instrument):
    """The hold has the place of the first statement, not of anything in Django."""
    watch = instrument(connections[alias])
    query(alias)
    (hold,) = Look().holds(watch)
    assert (hold.site.file, lines([hold])) == (__file__, [line_of(FILE, "query")])
    assert (hold.thread, hold.task) == (threading.current_thread().name, None)
    assert hold.statement == "select ?"
    assert hold.verdict == "ok"
    connections[alias].close()
    counters = Look().counters(watch)
    assert Look().holds(watch) == []
    assert (counters.checkouts, counters.checkins) == (1, 1)
    assert (counters.connects, counters.closes) == (1, 1)


def test_a_receiver_that_uses_another_alias(database, instrument, on_connect):
    """Both are held: neither gets its connection from the other."""
    shop, audit = database(), database("postgres")
    watches = [instrument(connections[each]) for each in (shop, audit)]

    def receiver(connection, **_):
        if connection.alias == shop:
            query(audit)

    on_connect(receiver)
    query(shop)
    assert [len(Look().holds(each)) for each in watches] == [1, 1]
    connections[shop].close()
    query(shop)
    assert [len(Look().holds(each)) for each in watches] == [1, 1]


def test_its_backend(database, instrument):
    """The pool is what the settings say, and the password is not told."""
    alias = database("postgres")
    watch = instrument(connections[alias], name="orders")
    backend = query(alias, "select pg_backend_pid()")
    look = Look()
    assert [hold.backend_pid for hold in look.holds(watch)] == [backend]
    stats = look.pool(watch)
    assert (stats.kind, stats.name, stats.size) == ("django", "orders", None)
    assert stats.url.startswith("postgresql://")
    assert "hunter2" not in stats.url
    connect = agent.ledger.pools[stats.id].server_connect
    with connect() as other, other.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        assert cursor.fetchone()[0] != backend


def test_the_end_of_a_request(alias, instrument):
    """A persistent connection is idle then, and held again with the next statement."""
    connections.settings[alias]["CONN_MAX_AGE"] = None
    watch = instrument(connections[alias])
    for times in (1, 2):
        request_started.send(sender=None)
        query(alias)
        query(alias)
        (hold,) = Look().holds(watch)
        assert "request" not in hold.evidence
        request_finished.send(sender=None)
        assert Look().holds(watch) == []
        assert connections[alias].connection is not None
        stats = Look().pool(watch)
        assert (stats.counters.checkins, stats.counters.connects) == (times, 1)
        assert stats.idle == 1


def test_transactions(alias, instrument):
    """atomic() opens the connection; the call site is the first statement."""
    watch = instrument(connections[alias])
    with transaction.atomic(using=alias):
        query(alias)
        (hold,) = Look().holds(watch)
        assert lines([hold]) == [line_of(FILE, "query")]
        until(lambda: Look().holds(watch)[0].in_transaction_idle_s > 0.01)
    idle = Look().holds(watch)[0].in_transaction_idle_s
    assert Look().holds(watch)[0].in_transaction_idle_s == idle


def test_a_failed_connect(database, instrument):
    """The application gets its error, and no wait stays behind."""
    alias = database("postgres", PORT="1")
    watch = instrument(connections[alias])
    with pytest.raises(Exception, match="connection"):
        query(alias)
    look = Look()
    assert (look.holds(watch), look.waits(watch)) == ([], [])
    assert not look.pool(watch).switched_off


def test_a_statement_that_fails(alias, instrument):
    """It is no more than that."""
    watch = instrument(connections[alias])
    with pytest.raises(Exception, match="nothing"):
        query(alias, "select * from nothing")
    assert query(alias) == 1
    assert len(Look().holds(watch)) == 1


def test_a_procedure_by_its_name(alias, instrument):
    """Its argument is called otherwise than that of execute()."""

    class Driver:
        def callproc(self, name):
            return name

    instrument(connections[alias])
    query(alias)
    cursor = CursorWrapper(Driver(), connections[alias])
    assert cursor.callproc(procname="refresh") == "refresh"
    assert cursor.callproc("refresh") == "refresh"


def test_closed_in_a_transaction(alias, instrument):
    """The connection is opened again after the block."""
    watch = instrument(connections[alias])
    with transaction.atomic(using=alias):
        query(alias)
        connections[alias].close()
        assert Look().holds(watch) == []
    assert Look().holds(watch) == []
    query(alias)
    assert len(Look().holds(watch)) == 1


# -- threads -----------------------------------------------------------------------


def test_a_thread_that_ends(alias, instrument):
    """Its connection is left open until the garbage collector finds it."""
    watch = instrument(connections[alias])
    gc.disable()
    try:
        in_thread(query, alias)
        until(lambda: Look().kinds() == ["leaked.orphaned"])
        (finding,) = Look().process.findings
        assert [site.line for site in finding.sites] == [line_of(FILE, "query")]
    finally:
        gc.enable()
    gc.collect()
    assert Look().kinds() == ["leaked.collected"]
    assert Look().holds(watch) == []


def test_a_persistent_connection_of_a_thread_that_ends(alias, instrument):
    """It was idle; now nothing can use it again."""
    connections.settings[alias]["CONN_MAX_AGE"] = None
    watch = instrument(connections[alias])

    def request():
        query(alias)
        close_old_connections()

    gc.disable()
    try:
        in_thread(request)
        until(lambda: Look().kinds() == ["leaked.orphaned"])
        assert lines(Look().holds(watch)) == [line_of(FILE, "query")]
    finally:
        gc.enable()
    gc.collect()
    assert Look().kinds() == ["leaked.collected"]


def test_a_thread_that_closes(alias, instrument):
    """That is honest work."""
    watch = instrument(connections[alias])

    def work():
        query(alias)
        connections[alias].close()

    in_thread(work)
    gc.collect()
    assert Look().kinds() == []
    assert Look().counters(watch).checkins == 1


def test_a_thread_that_lives_has_its_connection(alias, instrument):
    """However long it is open: the thread's next statement uses it."""
    watch = instrument(connections[alias], long_after=1e-9)
    query(alias)
    (hold,) = Look().holds(watch)
    assert (hold.verdict, hold.evidence) == (
        "ok",
        ("in use by the code that its thread runs",),
    )
    request_started.send(sender=None)
    query(alias)
    (hold,) = Look().holds(watch)
    assert hold.verdict == "long"
    assert "in use by the request that its thread serves" in hold.evidence
    request_finished.send(sender=None)


def test_an_async_view(alias, instrument):
    """The worker thread runs Django only: the call site is in the view."""
    watch = instrument(connections[alias])

    async def view():
        account = Account.objects.using(alias)
        await account.acount()  # view
        holds = await asyncio.to_thread(lambda: Look().holds(watch))
        await sync_to_async(connections.close_all)()
        return holds

    query(alias, "create table account (id integer primary key)")
    connections[alias].close()
    (hold,) = asyncio.run(view())
    assert (hold.site.function, hold.site.line) == ("view", line_of(FILE, "view"))
    query(alias, "drop table account")


# -- Django's pool -----------------------------------------------------------------

with_pool = pytest.mark.skipif(
    django.VERSION < (5, 1), reason="this version of Django has no pool"
)
POOL = {"pool": {"min_size": 1, "max_size": 2, "timeout": 5}}


@with_pool
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "all"])
def test_django_s_pool(database, instrument, explicit):
    """There is one hold, of psycopg's pool, at the line of the first statement."""
    alias = database("postgres", OPTIONS=POOL)
    instrument(*([connections[alias]] if explicit else []))
    with transaction.atomic(using=alias):
        query(alias)
        look = Look()
        (hold,) = look.process.holds
        assert lines([hold]) == [line_of(FILE, "query")]
        assert alias not in {pool.name for pool in look.process.pools}
        (pool,) = [each for each in look.process.pools if each.id == hold.pool]
        assert (pool.kind, pool.checked_out) == ("ConnectionPool", 1)
    connections[alias].close()
    assert Look().process.holds == ()
    if explicit:
        poolwatch.uninstrument(connections[alias])
        assert agent.pools is None


@with_pool
def test_a_thread_that_keeps_a_slot(database, instrument):
    """It runs code of the application, so its connection is not abandoned."""
    alias = database("postgres", OPTIONS=POOL)
    instrument(connections[alias], long_after=1e-9)
    query(alias)
    (hold,) = Look().process.holds
    assert hold.verdict == "long"
    assert "in use by the code that its thread runs" in hold.evidence


# -- instrument and its undo ---------------------------------------------------------


def traces():
    classes = [BaseDatabaseWrapper, CursorWrapper]
    receivers = [len(each.receivers) for each in (request_started, request_finished)]
    return [dict(vars(each)) for each in classes], receivers


def test_nothing_is_left(alias, instrument):
    """uninstrument() leaves Django as it was."""
    before = traces()
    instrument(connections[alias])
    assert traces() != before
    query(alias)
    poolwatch.uninstrument(connections[alias])
    assert traces() == before
    query(alias)
    connections[alias].close()


def test_every_alias(database, instrument):
    """Those there are and those to come, except the one that is left out."""
    before = traces()
    early = database()
    query(early)
    instrument(long_after=7)
    late = database()
    for alias in (early, late):
        query(alias)
    names = {pool.name: pool.long_after_s for pool in Look().process.pools}
    assert (names[early], names[late]) == (7, 7)
    poolwatch.uninstrument(connections[early])
    in_thread(query, early)
    gc.collect()
    assert early not in {pool.name for pool in Look().process.pools}
    poolwatch.uninstrument()
    assert traces() == before


def test_the_default_connection(instrument):
    """``django.db.connection`` is a proxy; so is the cache, which is none."""
    watch = instrument(connection, name="default")
    assert Look().pool(watch).name == "default"
    with pytest.raises(TypeError, match="a Django database connection"):
        instrument(cache)


@pytest.mark.parametrize("when", ["checked_out", "ended"])
def test_a_hook_that_fails(alias, instrument, caplog, when):
    """It is logged once and switched off; Django goes on."""
    watch = instrument(connections[alias])

    class Broken:
        def checked_out(self, *_):
            assert when != "checked_out"

        def ended(self, *_):
            assert when != "ended"

    broken = Broken()
    agent.ledger.observers.append(broken)
    try:
        for _ in range(2):
            assert query(alias) == 1
            connections[alias].close()
    finally:
        agent.ledger.observers.remove(broken)
    assert caplog.text.count("is switched off for it") == 1
    assert Look().pool(watch).switched_off


PSYCOPG2 = """
    import sys
    sys.modules["psycopg"] = None
    import poolwatch
    poolwatch.instrument()
    from django.conf import settings
    settings.configure(DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": "%s", "USER": "%s",
        "HOST": "%s", "PORT": "%s"}})
    from django.db import connection
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        (pid,) = cursor.fetchone()
    (hold,) = poolwatch.snapshot().processes[0].holds
    assert hold.backend_pid == pid, hold
    assert "psycopg2" in sys.modules
    connection.close()
    assert poolwatch.snapshot().processes[0].holds == ()
"""


def test_psycopg2(postgres, tmp_path):
    """Django uses it where psycopg is not installed."""
    place = postgres.database, postgres.user, postgres.host, postgres.port
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(PSYCOPG2) % place)
    subprocess.run([sys.executable, script], check=True)
