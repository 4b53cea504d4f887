"""Small parts of the core: words, histograms, labels, the wire, the books."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import json
import pickle
import random

import pytest
from fix_core import Look, null_pool_of
from patience import LONG_S, until

import poolwatch
from poolwatch.errors import UnreachableError
from poolwatch.ledger.histogram import Histogram, merged
from poolwatch.ledger.labels import current_context, label, long_hold
from poolwatch.ledger.pool import MOST_SITES
from poolwatch.model import OTHER_SITES, Frame
from poolwatch.protocol import document as wire
from poolwatch.text.format import (
    duration,
    fit,
    neutral,
    one_line,
    place,
    plural,
    short_time,
    width,
)

# -- words ---------------------------------------------------------------------------

HOSTILE = (
    "a\x1b[31mb\x00\x07\r\n\t\x9b2J\u202e\u2066\ud800\ufeff[/b]\u2028é漢字e\u0301" * 3
)


def test_nothing_hostile_reaches_a_terminal():
    """Escape sequences, control and bidi characters become visible signs."""
    for made in (neutral(HOSTILE), one_line(HOSTILE), place(Frame(HOSTILE, 1, "f"))):
        assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in made)
        assert not set(made) & set("\u202e\u2066\ud800\ufeff\u2028")
        made.encode("utf-8")
    assert neutral("a\n\tb", lines=True) == "a\n    b"


@pytest.mark.parametrize("cells", [1, 2, 3, 7, 20, 80])
def test_fit_is_exact(cells):
    """A text takes exactly the cells it is given, wide characters included."""
    for text in ("", "abc", "漢字漢字", "a漢b字c", "e\u0301" * 10, one_line(HOSTILE)):
        assert width(fit(text, cells)) == cells


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"), (0, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"),
        (59.6, "1m00s"), (3599.6, "1h00m"), (86399.9, "1d00h"), (1e9, "11574d01h"),
        (-1, "0.0s"),
    ],
)  # fmt: skip
def test_duration(seconds, said):
    """Ages in at most two units, without a jump between them."""
    assert duration(seconds) == said


def test_other_words():
    """Latencies and numbers of things."""
    assert [short_time(s) for s in (None, 2e-6, 0.0034, 0.99951, 12.3)] == [
        "-", "2 µs", "3.4 ms", "1 s", "12.3 s",
    ]  # fmt: skip
    assert (plural(1, "hold"), plural(0, "hold")) == ("1 hold", "0 holds")
    assert place(None) == "?"
    assert place(Frame("C:\\app\\billing\\export.py", 8, "f")) == "billing/export.py:8"


# -- histograms ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4])
def test_percentiles(scale):
    """p50, p95 and p99 are within 10 % of the truth; count, sum and max are exact."""
    chance = random.Random(3)
    samples = [scale * chance.lognormvariate(2, 1) for _ in range(5000)]
    histogram = Histogram()
    for at in range(0, 5000, 50):
        histogram.add(samples[at : at + 50])
    seen = histogram.distribution()
    assert (seen.count, seen.max) == (5000, max(samples))
    assert seen.sum == pytest.approx(sum(samples))
    samples.sort()
    for share, value in ((0.5, seen.p50), (0.95, seen.p95), (0.99, seen.p99)):
        truth = samples[int(share * 5000) - 1]
        assert value == pytest.approx(truth, rel=0.1, abs=1.1e-6)


def test_extreme_samples():
    """Nothing, zero and a century: all are counted."""
    assert Histogram().distribution().p50 is None
    histogram = Histogram()
    histogram.add([0.0, 0.0, 3e9])
    both = merged([histogram, Histogram(), histogram]).distribution()
    assert (both.count, both.max) == (6, 3e9)
    assert both.p50 < 1e-6


# -- labels ------------------------------------------------------


def test_labels_are_carried(instrument):
    """Labels and declared long holds are those of the code that asked."""
    pool = null_pool_of()
    watch = instrument(pool, long_after=1e-9)
    with label(endpoint="/orders", tenant=7), label(tenant=8), long_hold("LISTEN"):
        held = pool.connect()
    (hold,) = watch.holds()
    assert hold.labels == {"endpoint": "/orders", "tenant": "8"}
    assert (hold.verdict, hold.evidence) == ("ok", ("declared long: LISTEN",))
    held.close()
    with pool.connect():
        assert watch.holds()[0].labels == {}
        assert watch.holds()[0].verdict == "long"


def test_labels_are_bounded():
    """Sixteen labels of 200 characters, and a value that cannot be text is no error."""

    class Broken:
        def __str__(self):
            raise ZeroDivisionError

    with label(**{f"k{n}": "v" * 1000 for n in range(30)}):
        assert len(current_context.get().labels) == 16
        assert len(current_context.get().labels["k0"]) == 200
    with label(x=Broken()):
        assert current_context.get().labels == {"x": "(Broken)"}
    for reason in ("", " ", None):
        with pytest.raises(ValueError, match="needs a reason"), long_hold(reason):
            pass


def test_a_block_that_ends_in_another_context():
    """A dependency or fixture whose generator is ended elsewhere raises nothing."""

    def dependency():
        with label(endpoint="/x"), long_hold("because"):
            yield

    generator = dependency()
    contextvars.copy_context().run(next, generator)
    with pytest.raises(StopIteration):
        contextvars.copy_context().run(next, generator)

    async def asynchronous():
        other = dependency()
        await asyncio.create_task(asyncio.to_thread(next, other))
        other.close()

    asyncio.run(asynchronous())


# -- the wire ------------------------------------------------------


def damaged(document):
    """The document with each single value replaced by something else."""

    def places(value, path=()):
        yield path
        for key, each in (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list)
            else ()
        ):
            yield from places(each, (*path, key))

    for path in list(places(document))[1:]:
        for wrong in ({}, [], [[]], "x", -1, 1e999, float("nan"), 10**400, True, None):
            copy = json.loads(json.dumps(document))
            spot = copy
            for key in path[:-1]:
                spot = spot[key]
            spot[path[-1]] = wrong
            yield copy


def test_a_document_that_is_damaged_anywhere(instrument, sqlite):
    """Any wrong value anywhere is one sentence or harmless: what is read back can be
    printed, and nothing but UnreachableError is raised."""
    from poolwatch.commands.ps_table import Style, render

    engine = sqlite()
    instrument(engine, long_after=1e-9)
    with engine.connect():
        text = wire.to_json(poolwatch.snapshot(), viewers=True)
    document = json.loads(text)
    (process,) = document["processes"]
    process["holds"][0]["stack"] = process["holds"][0]["stack"][:1]
    process["holds"][0]["now"] = []
    assert wire.from_json(json.dumps(document))
    refused = 0
    for broken in damaged(document):
        try:
            snapshot = wire.from_json(json.dumps(broken))
        except UnreachableError as error:
            refused += len(str(error)) < 500
        else:
            render(snapshot, Style(80))
    assert refused > 300


def test_it_is_read_back_as_it_was(instrument, sqlite):
    """What viewers read equals what the process has seen, to the microsecond."""
    engine = sqlite()
    instrument(engine)
    with engine.connect(), label(x="\ud800 é \x1b"):
        held = engine.raw_connection()
        snapshot = poolwatch.snapshot()
        held.close()
    text = wire.to_json(snapshot, viewers=True)
    assert text.isascii()
    again = wire.from_json(text)
    assert wire.to_json(again, viewers=True) == text
    assert again.processes[0].holds[0].stack == snapshot.processes[0].holds[0].stack


# -- the books ------------------------------------------------------


def test_many_sites_are_counted_together(instrument):
    """Beyond the bound, call sites are counted as others: no checkout is lost."""
    pool = null_pool_of()
    watch = instrument(pool)
    total = MOST_SITES + 70
    for number in range(total):
        scope = {"pool": pool, "__name__": "generated"}
        exec(f"def f{number}():\n    pool.connect().close()\nf{number}()", scope)
    sites = Look().process.sites
    assert len(sites) == MOST_SITES + 1
    assert sum(site.count for site in sites) == total
    assert {site.site: site.count for site in sites}[OTHER_SITES] == 70
    assert Look().counters(watch).checkouts == total


def test_nested_and_deadlock(instrument):
    """Holders that wait for a second connection of an exhausted pool are a deadlock; a
    pool without a limit never is."""
    import threading
    import weakref

    pool = null_pool_of(pool_size=1, max_overflow=0, timeout=LONG_S)
    watch = instrument(pool)
    outers = []

    def nests():
        outer = pool.connect()
        outers.append(weakref.ref(outer))  # this thread alone could return it
        pool.connect().close()

    thread = threading.Thread(target=nests)
    thread.start()
    until(lambda: Look().waits(watch))
    assert {"pool_deadlock", "nested", "exhausted"} <= set(Look().kinds())
    outers.pop()().close()
    thread.join()

    endless = null_pool_of(pool_size=1, max_overflow=-1)
    watch = instrument(endless)
    first = endless.connect()
    second = endless.connect()
    assert "pool_deadlock" not in Look().kinds()
    assert "nested" in Look().kinds()
    first.close()
    second.close()
    mine = Look().pool(watch).id
    past = [each for each in Look().process.findings if each.pool == mine]
    assert [(each.kind, each.severity) for each in past] == [("nested", "info")]


# -- holders ------------------------------------------------------------------------


def test_threads_that_python_did_not_start(instrument):
    """A thread started below ``threading`` is a holder like others, and its end is seen
    or at least not an error."""
    import _thread
    import threading

    pool = null_pool_of()
    watch = instrument(pool, long_after=1e-9)
    taken, go, ended = [], threading.Event(), threading.Event()

    def work():
        taken.append(pool.connect())
        go.set()
        ended.wait()

    _thread.start_new_thread(work, ())
    go.wait()
    assert watch.holds()[0].verdict == "long"
    ended.set()
    until(lambda: watch.holds()[0].now == ())
    assert watch.holds()[0].verdict in ("long", "leaked")
    taken.pop().close()
    assert watch.holds() == ()


def test_a_frame_cannot_be_changed():
    frame = Frame("app.py", 1, "work")
    with pytest.raises(AttributeError):
        frame.line = 2
    with pytest.raises(AttributeError):
        del frame.line
    assert repr(frame) == "Frame(file='app.py', line=1, function='work')"
    for same in (copy.deepcopy(frame), pickle.loads(pickle.dumps(frame))):
        assert same == frame
        assert hash(same) == hash(frame)
    assert frame._replace(line=2) == Frame("app.py", 2, "work") != frame
