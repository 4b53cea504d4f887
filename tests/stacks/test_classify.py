"""What a holder does now is told by its stack."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import until

from poolwatch.stacks.capture import pairs_of, resolve
from poolwatch.stacks.classify import activity_of


@contextmanager
def at(work):
    """A thread that is at ``work``; gives what tells its stack."""
    release = threading.Event()
    thread = threading.Thread(target=work, args=(release,), daemon=True)
    thread.start()
    try:
        yield lambda: resolve(pairs_of(sys._current_frames()[thread.ident]))
    finally:
        release.set()
        thread.join()


def sleeps(release):
    while not release.is_set():
        time.sleep(0.4)


def waits(release):
    release.wait()


def locked(release):
    lock = threading.Lock()
    with lock:
        while not release.is_set():
            lock.acquire(timeout=0.4)


def computes(release):
    while not release.is_set():
        sum(range(1000))


def fetches(release):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        while not release.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=0.4)
            connection.request("GET", "/")
            with pytest.raises(TimeoutError):
                connection.getresponse()
            connection.close()


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (sleeps, "sleep"),
        (waits, "lock"),
        (locked, "lock"),
        (computes, "code"),
        (fetches, "http"),
    ],
)
def test_kinds(work, kind):
    """A thread at real work is recognised by its stack, at the user's own line."""
    with at(work) as stack:
        told = until(
            lambda: (told := activity_of(stack())) and told.kind == kind and told
        )
    assert Path(told.frame.file) == Path(__file__)
    assert told.frame.function == work.__name__


def test_nothing():
    """No stack, no answer."""
    assert activity_of(()) is None
