"""The loop: one look at a time, to every sink, until it is told to end."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import fake_looks
import fakes
import pytest
from helpers import LONG_S, until

from poolwatch.errors import ForbiddenError, NoProcessError
from poolwatch.model import Snapshot
from poolwatch.sidecar.looks import Looks, look_at

PROCESS = fakes.process(findings=(fakes.finding(),))


class Sink:
    def __init__(self):
        self.looks = []
        self.closed = threading.Event()
        self.breaks = False

    def take(self, look):
        self.looks.append(look)
        if self.breaks:
            raise ValueError("broken")

    def close(self):
        self.closed.set()


class HangingSink(Sink):
    def close(self):
        self.closed.wait(LONG_S)


class BrokenSink(Sink):
    def close(self):
        raise OSError("disk full")


@pytest.fixture
def loop():
    """Starts a loop in a thread, and ends it."""
    running = []

    def start(source, *sinks, every_s=0.01, **settings):
        looks = Looks(source, sinks, every_s, **settings)
        thread = threading.Thread(target=looks.run, daemon=True)
        thread.start()
        running.append((looks, thread))
        return looks, thread

    yield start
    for looks, thread in running:
        looks.stop()
        thread.join(LONG_S)


def test_looks_until_it_is_told_to_end(loop):
    source, sink = fakes.FakeSource(fakes.snapshot(PROCESS)), Sink()
    looks, thread = loop(source, sink)
    until(lambda: len(sink.looks) > 3)
    looks.stop()
    thread.join(LONG_S)
    assert sink.closed.is_set()
    assert source.calls == len(sink.looks)  # with the last look
    assert [len(look.changes.began) for look in sink.looks][:3] == [0, 1, 0]
    assert sink.looks[-1].error is None
    assert sink.looks[-1].at >= sink.looks[0].at


def test_the_end_waits_neither_for_the_next_look_nor_for_one_that_hangs(loop):
    source, sink = fakes.FakeSource(fakes.snapshot(PROCESS)), Sink()
    looks, thread = loop(source, sink, every_s=3600)
    until(lambda: sink.looks)
    source.free.clear()
    looks.stop()
    looks.stop()
    thread.join(LONG_S / 2)  # the source hangs longer
    assert not thread.is_alive()
    assert sink.closed.is_set()
    source.free.set()


def test_a_sink_that_fails_costs_the_others_nothing(loop, caplog):
    broken, hanging, sink = BrokenSink(), HangingSink(), Sink()
    broken.breaks = True
    source = fakes.FakeSource(fakes.snapshot(PROCESS))
    looks, thread = loop(source, broken, hanging, sink)
    until(lambda: len(sink.looks) > 3)
    looks.stop()
    thread.join(LONG_S / 2)
    assert not thread.is_alive()
    assert sink.closed.is_set()
    said = [
        each.getMessage() for each in caplog.records if each.name == "poolwatch.sidecar"
    ]
    assert said == [
        "BrokenSink could not take a look",  # once
        "BrokenSink could not be closed",
    ]
    hanging.closed.set()


def test_a_process_that_lies_about_its_start_stops_no_look(loop, caplog):
    liar, sink = replace(PROCESS, started_at="later"), Sink()
    known = fake_looks.incident("one", PROCESS, 0)
    loop(fakes.FakeSource(fakes.snapshot(liar)), sink, lasting=[known])
    until(lambda: len(sink.looks) > 3)
    assert "Incidents could not take a look" in caplog.text


def test_a_look_that_fails_changes_nothing(loop, caplog):
    caplog.set_level(logging.WARNING)
    seen, failed = fakes.snapshot(PROCESS), ForbiddenError("not yours")
    sink = Sink()
    loop(fakes.FakeSource(seen, seen, failed, failed, failed, failed, seen), sink)
    until(lambda: len(sink.looks) > 7)
    assert sink.looks[2].error == "not yours"
    assert sink.looks[2].snapshot == Snapshot()
    assert [len(look.changes.lasting) for look in sink.looks[:7]] == [
        *(0, 1),
        *[0] * 4,
        1,
    ]
    assert not any(look.changes.ended for look in sink.looks)
    assert caplog.text.count("not yours") == 1


def test_no_process_is_no_failure():
    look = look_at(fakes.FakeSource(NoProcessError("none")))
    assert (look.snapshot, look.error) == (Snapshot(), None)


def test_an_error_of_ours_is_a_failed_look(caplog):
    look = look_at(fakes.FakeSource(KeyError("x")))
    assert look.error == "KeyError in poolwatch itself"


def test_the_given_host_replaces_the_processes_own():
    look = look_at(fakes.FakeSource(fakes.snapshot(PROCESS)), "pod-7")
    assert look.snapshot.processes[0].host == "pod-7"
