"""Work in threads."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

PING = text("select 1")
LONG_S = 1.6  # longer than long_after
FORGOTTEN: list[Any] = []


def forget(engine: Engine) -> None:
    """The only leak there is, and only when asked for."""
    connection = engine.connect()  # leak
    connection.execute(PING)
    connection.rollback()
    FORGOTTEN.append(connection)


@contextmanager
def session_of(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        session.execute(PING)
        yield session


def load(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(PING)
        time.sleep(0.05)


def store(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(PING)
        time.sleep(0.05)


def one_after_the_other(engine: Engine) -> None:
    load(engine)
    store(engine)


def report(engine: Engine) -> None:
    """A session beside what it has read."""
    with session_of(engine) as session:
        rows = [{"id": n, "tags": {"a": [n], "b": {}}} for n in range(20_000)]
        session.execute(PING)
        time.sleep(LONG_S)
        assert len(rows) == 20_000


def handed_to_another(engine: Engine) -> None:
    with ThreadPoolExecutor(1) as executor:
        connection = engine.connect()
        executor.submit(use, connection).result()


def use(connection: Any) -> None:
    with connection:
        connection.execute(PING)
        time.sleep(LONG_S)


def pages(engine: Engine) -> Iterator[int]:
    with engine.connect() as connection:
        yield from connection.execute(text("select generate_series(1, 8)")).scalars()


def generated(engine: Engine) -> None:
    for _ in pages(engine):
        time.sleep(LONG_S / 8)


def scoped(engine: Engine) -> None:
    registry = scoped_session(sessionmaker(engine))
    registry.execute(PING)
    lookup(registry)
    registry.remove()


def lookup(registry: Any) -> None:
    registry.execute(PING)
    time.sleep(LONG_S)


def work_off(engine: Engine, over: threading.Event) -> None:
    """Jobs from a queue, one session for each."""
    jobs: queue.Queue[int] = queue.Queue()
    while not over.is_set():
        jobs.put(1)
        with session_of(engine):
            jobs.get()
            time.sleep(0.2)


JOBS: tuple[Callable[[Engine], None], ...] = (
    one_after_the_other,
    report,
    handed_to_another,
    generated,
    scoped,
)


def again_and_again(
    job: Callable[[Engine], None], engine: Engine, over: threading.Event
) -> None:
    while not over.is_set():
        job(engine)


def start(engine: Engine, over: threading.Event) -> list[threading.Thread]:
    threads = [
        threading.Thread(
            target=again_and_again, args=(job, engine, over), name=job.__name__
        )
        for job in JOBS
    ]
    threads.append(threading.Thread(target=work_off, args=(engine, over), name="queue"))
    for thread in threads:
        thread.start()
    return threads
