"""The thread that looks at a run: seen by nobody, and gone during a fork."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from poolwatch.testing.lookout import Lookout


@pytest.fixture
def looks():
    return []


@pytest.fixture
def lookout(looks):
    made = Lookout(lambda: looks.append(threading.get_ident()), 0.01)
    yield made
    made.close()


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_one_thread_that_is_not_listed(lookout, looks):
    before = threading.enumerate()
    lookout.start()
    lookout.start()
    wait_for(lambda: len(looks) > 3)
    assert len(set(looks)) == 1
    assert looks[0] in sys._current_frames()
    assert threading.enumerate() == before
    lookout.close()
    count = len(looks)
    wait_for(lambda: looks[0] not in sys._current_frames())
    lookout.start()
    time.sleep(0.05)
    assert len(looks) == count


def test_it_is_gone_during_a_fork_and_goes_on_in_the_parent(lookout, looks):
    lookout.start()
    wait_for(lambda: looks)
    count = len(looks)
    pid = os.fork()
    if not pid:
        only = list(sys._current_frames()) == [threading.get_ident()]
        lookout.start()  # the child has its own, once something asks for it
        until = time.monotonic() + 20
        while len(looks) == count and time.monotonic() < until:
            time.sleep(0.005)
        os._exit(0 if only and len(looks) > count else 7)
    assert os.waitpid(pid, 0)[1] == 0
    count = len(looks)
    wait_for(lambda: len(looks) > count)


def test_a_look_that_fails_is_logged_once_and_is_the_last(caplog):
    def fail():
        raise ValueError("no")

    lookout = Lookout(fail, 0.01)
    lookout.start()
    wait_for(lambda: caplog.records)
    time.sleep(0.05)
    lookout.start()
    assert len(caplog.records) == 1
    assert "stand still" in caplog.text
    lookout.close()
