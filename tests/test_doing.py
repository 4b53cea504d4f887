"""What a holder does now is told by its stack."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from poolwatch.callsites import pairs_of, resolve
from poolwatch.doing import doing


def stack_of(work):
    """The stack of a thread that is inside ``work``; ends it afterwards."""
    release = threading.Event()
    thread = threading.Thread(target=work, args=(release,), daemon=True)
    thread.start()
    time.sleep(0.15)
    frame = sys._current_frames()[thread.ident]
    now = resolve(pairs_of(frame))
    del frame
    release.set()
    return now


def sleeps(release):
    time.sleep(0.4)


def waits(release):
    release.wait()


def locked(release):
    lock = threading.Lock()
    with lock:
        lock.acquire(timeout=0.4)


def computes(release):
    while not release.is_set():
        sum(range(1000))


def fetches(release):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
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
    told = doing(stack_of(work))
    assert told.kind == kind
    assert Path(told.frame.file) == Path(__file__)
    assert told.frame.function == work.__name__


def test_nothing():
    """No stack, no answer."""
    assert doing(()) is None
