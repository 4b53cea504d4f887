"""Connections in greenlets: work that lasts, and leaks. Each has its shape as a label.

    green.py gevent|eventlet blocking|psycogreen patched-first|patched-last

``patched-last``: the libraries are patched after poolwatch was imported.
"""

from __future__ import annotations

import importlib
import os
import sys

LIBRARY, DRIVER, ORDER = sys.argv[1:]


def patch():
    if LIBRARY == "gevent":
        from gevent.monkey import patch_all

        patch_all()
    else:
        from eventlet import monkey_patch

        monkey_patch()
    if DRIVER == "psycogreen":
        importlib.import_module(f"psycogreen.{LIBRARY}").patch_psycopg()


if ORDER == "patched-first":
    patch()

import poolwatch  # noqa: E402

if ORDER == "patched-last":
    patch()

import logging  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from contextlib import ExitStack  # noqa: E402

from psycopg2.pool import ThreadedConnectionPool  # noqa: E402
from sqlalchemy import create_engine, text  # noqa: E402
from sqlalchemy.orm import Session, scoped_session, sessionmaker  # noqa: E402

if LIBRARY == "gevent":
    import gevent
    from gevent import kill, spawn
    from gevent.pool import Pool
    from gevent.queue import Queue
    from gevent.threadpool import ThreadPool

    workers = ThreadPool(2)
    in_a_thread = workers.spawn
    later = gevent.spawn_later
    limited = gevent.Timeout
else:
    import eventlet
    from eventlet import GreenPool as Pool
    from eventlet import kill, spawn, tpool
    from eventlet.queue import Queue

    def in_a_thread(call):
        return spawn(tpool.execute, call)

    later = eventlet.spawn_after
    limited = eventlet.Timeout

logging.basicConfig(level=logging.INFO)
engine = create_engine(os.environ["SHOP_DATABASE"], pool_size=40)
apart = create_engine(os.environ["SHOP_DATABASE"])  # eventlet's locks are one thread's
plain = ThreadedConnectionPool(0, 40, os.environ["SHOP_DSN"])
for each in (engine, apart, plain):
    poolwatch.instrument(each, long_after=0.5)

LONG = 60
never = threading.Event()
queue = Queue()
pool = Pool(8)
registry = scoped_session(sessionmaker(engine))
kept = []
cache = {}


def take():
    connection = engine.connect()
    connection.execute(text("SELECT 1"))
    return connection


def wait(*_):
    time.sleep(LONG)


# -- honest work -----------------------------------------------------------------------


def fine_asleep(source=engine):
    with source.connect():
        time.sleep(LONG)  # asleep


def fine_waits_for_an_event():
    with Session(engine) as session:
        session.execute(text("SELECT 1"))
        never.wait(LONG)


def fine_from_a_helper():
    connection = take()
    try:
        wait()
    finally:
        connection.close()


def fine_handed_on():
    spawn(wait, take())


def fine_through_a_queue():
    def consume():
        connection = queue.get()
        wait()
        connection.close()

    spawn(consume)
    queue.put(take())


def fine_yet_to_start():
    later(LONG, wait, take())


def fine_streamed():
    def rows():
        with engine.connect() as connection:
            yield from connection.execute(text("SELECT generate_series(1, 9)"))

    for _ in rows():
        wait()


def fine_on_a_stack():
    with ExitStack() as stack:
        stack.enter_context(engine.connect())
        wait()


def fine_as_a_thread():
    threading.Thread(target=fine_asleep, name="reporter", daemon=True).start()


def fine_in_a_pool():
    pool.spawn(fine_asleep)


def fine_in_a_real_thread():
    in_a_thread(lambda: fine_asleep(apart))


def fine_with_a_limit():
    with limited(LONG):
        fine_asleep()


def fine_while_others_work():
    with engine.connect():
        spawn(wait).join() if LIBRARY == "gevent" else spawn(wait).wait()


def fine_of_psycopg2():
    connection = plain.getconn()
    connection.cursor().execute("SELECT 1")
    wait()
    plain.putconn(connection)


def fine_sleeps_in_the_server():
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))


# -- leaks -----------------------------------------------------------------------------


def leak_kept_in_a_list():
    def serve():
        kept.append(take())

    serve()
    wait()


def leak_ended():
    kept.append(take())


def leak_killed():
    def leak_before_the_end():
        cache["killed"] = take()
        wait()

    victim = spawn(leak_before_the_end)
    while "killed" not in cache:
        time.sleep(0.01)
    kill(victim)


def leak_session_not_removed():
    def request():
        registry.execute(text("SELECT 1"))

    request()
    wait()


def leak_of_psycopg2():
    def serve():
        cache["plain"] = plain.getconn()

    serve()
    wait()


# --------------------------------------------------------------------------------------


def begin(shape):
    with poolwatch.label(shape=shape.__name__):
        shape()


shapes = [
    shape
    for name, shape in list(globals().items())
    if name.startswith(("fine_", "leak_"))
    if DRIVER == "psycogreen" or shape is not fine_sleeps_in_the_server
]
for shape in shapes:
    spawn(begin, shape)
with poolwatch.label(shape="fine_in_the_first_greenlet"), engine.connect():
    time.sleep(LONG)
