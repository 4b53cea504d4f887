"""Advice on the size of a pool, against what is known to be right."""

from __future__ import annotations

import heapq
import json
import random
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
from fix_core import Look, null_pool_of

from poolwatch.agent.recording import most_at_once
from poolwatch.commands.advise import sizing
from poolwatch.commands.advise.advise import advise
from poolwatch.protocol.records import Request, Trace

TARGET_S = 0.01


def poisson(rate, held_s, count, seed):
    """M/M/c: independent requests, exponential holds."""
    chance = random.Random(seed)
    now, requests = 0.0, []
    for _ in range(count):
        now += chance.expovariate(rate)
        requests.append((now, chance.expovariate(1 / held_s)))
    return requests


def bursty(count, seed):
    """Up to thirty at once, once a second."""
    chance = random.Random(seed)
    now, requests = 0.0, []
    while len(requests) < count:
        now += chance.expovariate(1.0)
        for _ in range(chance.randint(1, 30)):
            now += chance.expovariate(500)
            requests.append((now, chance.expovariate(1 / 0.05)))
    return requests


def on_and_off(count, seed):
    """Half a second of many requests, two seconds of none, and holds of all lengths."""
    chance = random.Random(seed)
    now, requests = 0.0, []
    while len(requests) < count:
        now += chance.expovariate(0.5)
        end = now + chance.expovariate(2.0)
        while now < end:
            now += chance.expovariate(400)
            requests.append((now, 0.025 * chance.lognormvariate(0, 1)))
    return requests


def by_brute_force(requests):
    """Try every size from one on, with a plain simulation of its own."""
    size = 1
    while True:
        free, waits = [0.0] * size, []
        for asked, held in requests:
            begin = max(asked, heapq.heappop(free))
            heapq.heappush(free, begin + held)
            waits.append(begin - asked)
        waits.sort()
        if waits[-(-len(waits) * 99 // 100) - 1] <= TARGET_S:
            return size
        size += 1


def trace_of(requests, pool, **changes):
    records = tuple(Request(asked, held, 0.0, -1) for asked, held in requests)
    seconds = requests[-1][0] if requests else 1.0
    about = {"timeouts": 0, "connects": 0, "depth": 1, "nesting": 0, **changes}
    return Trace(pool, seconds, records, (), **about)


@pytest.fixture
def pool(instrument):
    pool = null_pool_of(pool_size=5, max_overflow=10)  # alive until it is looked at
    watch = instrument(pool, name="orders")
    return Look().pool(watch)


@pytest.mark.parametrize(
    ("rate", "held_s"),
    [
        (100, 0.05),
        (20, 0.2),
        (400, 0.01),
        (5, 0.05),
        (30, 0.3),
        (50, 0.5),
        (1000, 0.03),
    ],
)
def test_poisson(pool, rate, held_s):
    """M/M/c: within one of a long simulation, even if the record is short for a load of
    many connections and its replay too optimistic."""
    truth = by_brute_force(poisson(rate, held_s, 40_000, seed=99))
    for seed in range(3):
        for count in (3_000, 8_000):
            trace = trace_of(poisson(rate, held_s, count, seed), pool)
            advice = advise(trace, TARGET_S)
            assert abs(advice.size - truth) <= 1
            assert abs(advice.by_theory - truth) <= 1


@pytest.mark.parametrize("load", [bursty, on_and_off])
def test_bursts(pool, load):
    """Brute force finds the same size for the same requests, and nearly the same for
    many more; theory ignores bursts, so the advice follows the replay."""
    truth = by_brute_force(load(60_000, seed=99))
    for seed in range(3):
        requests = load(6_000, seed)
        advice = advise(trace_of(requests, pool), TARGET_S)
        assert advice.size == advice.by_replay == by_brute_force(requests)
        assert abs(advice.size - truth) <= 1
        (sizing, *_) = advice.recommendations
        assert f"pool_size={advice.size}" in (sizing.line or sizing.text)


def test_erlang():
    """Known values: one server, and a textbook's call centre (20 erlang, 24 agents)."""
    assert sizing.erlang_c(1, 0.7) == pytest.approx(0.7)
    assert sizing.erlang_c(24, 20.0) == pytest.approx(0.298, abs=0.005)


def test_replay_by_hand():
    """Two connections, three requests at once: the third waits for the first to end."""
    requests = [(0.0, 1.0), (0.0, 2.0), (0.0, 1.0), (3.0, 1.0)]
    assert sizing.replayed_waits(requests, 2) == [0.0, 0.0, 1.0, 0.0]
    assert sizing.smallest_by_replay(requests, 0.0, share=1.0) == 3
    assert most_at_once([(0, 2), (1, 3), (2, 4)]) == 2


def test_too_thin(pool):
    """A thin record is named as such, and no size is given."""
    advice = advise(trace_of(poisson(10, 0.05, 50, 1), pool), TARGET_S)
    assert advice.size is None
    assert "only 50 requests" in advice.thin
    long = [(n * 0.001, 0.001) for n in range(300)]
    long[5] = (0.005, 0.29)
    assert "record for longer" in advise(trace_of(long, pool), TARGET_S).thin
    assert advise(trace_of([], pool), TARGET_S).held_s is None


def test_deadlock_overflow_and_ping(pool):
    """Each with its numbers and its line."""
    counters = replace(pool.counters, invalidated=3)
    pool = replace(pool, size=4, max_overflow=1, counters=counters)
    trace = trace_of(
        poisson(100, 0.02, 3_000, 1), pool, depth=2, nesting=6, connects=900
    )
    advice = advise(trace, TARGET_S)
    assert advice.without_deadlock == 7
    lines = " ".join(each.line or "" for each in advice.recommendations)
    assert "pool_size=7" in lines
    assert "max_overflow=0" in lines
    assert "pool_pre_ping=True" in lines


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "AsyncConnectionPool",
            [
                "AsyncConnectionPool(..., max_size=7)",
                "AsyncConnectionPool(..., min_size=<the peak>)",
                "AsyncConnectionPool(..., check=AsyncConnectionPool.check_connection)",
            ],
        ),
        ("NullConnectionPool", ["check=NullConnectionPool.check_connection"]),
        ("ThreadedConnectionPool", ["ThreadedConnectionPool(..., maxconn=7)"]),
        ("asyncpg.Pool", ["asyncpg.create_pool(..., max_size=7)"]),
    ],
)
def test_advice_is_in_the_words_of_the_pool(pool, kind, expected):
    """A line to copy: no pool of a driver has a pool_size or a pre-ping."""
    counters = replace(pool.counters, invalidated=3)
    pool = replace(pool, kind=kind, size=4, max_overflow=1, counters=counters)
    trace = trace_of(
        poisson(100, 0.02, 3_000, 1), pool, depth=2, nesting=6, connects=900
    )
    told = advise(trace, TARGET_S).recommendations
    everything = " ".join(f"{each.text} {each.why} {each.line}" for each in told)
    for line in expected:
        assert line in everything
    assert "pool_size" not in everything
    assert "pre_ping" not in everything
    assert "overflow" not in everything


def test_a_pool_that_is_just_right_is_left_alone(pool):
    """Of a driver's pool by all it may have, whatever it keeps."""
    requests = poisson(100, 0.02, 3_000, 1)
    size = advise(trace_of(requests, pool), TARGET_S).size
    pool = replace(pool, kind="ConnectionPool", size=1, max_overflow=size - 1)
    (sizing, *_) = advise(trace_of(requests, pool), TARGET_S).recommendations
    assert (sizing.text, sizing.line) == (f"leave max_size at {size}", None)


def test_the_size_is_compared_with_the_slots_that_are_left(pool):
    """A pool that has lost slots is not left as it is: it cannot lend that many."""
    requests = poisson(100, 0.02, 3_000, 1)
    size = advise(trace_of(requests, pool), TARGET_S).size
    pool = replace(pool, kind="ConnectionPool", size=1, max_overflow=size - 1)
    pool = replace(pool, lost_slots=2)
    (sizing, *_) = advise(trace_of(requests, pool), TARGET_S).recommendations
    assert sizing.line == f"ConnectionPool(..., max_size={size})"
    assert f"{size - 2} of {size} connections are left" in sizing.why

    larger = replace(pool, max_overflow=size + 1)
    (sizing, *_) = advise(trace_of(requests, larger), TARGET_S).recommendations
    assert sizing.line == f"ConnectionPool(..., max_size={size})"
    assert f"{size} of {size + 2} connections are left" in sizing.why


def test_lost_slots_can_lock_up_a_pool_that_was_large_enough(pool):
    pool = replace(pool, kind="ConnectionPool", size=7, max_overflow=0, lost_slots=1)
    trace = trace_of(poisson(10, 0.02, 100, 1), pool, depth=2, nesting=6)
    (found,) = advise(trace, TARGET_S).recommendations
    assert found.text.startswith("7 connections are the minimum that cannot deadlock")
    assert found.text.endswith("6 of 7 connections are left")


def test_the_command(socket_dir):
    """A real application under load, from outside."""
    app = textwrap.dedent(
        """
        import threading, time, random
        from sqlalchemy import create_engine
        from sqlalchemy.pool import QueuePool
        import poolwatch
        engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=3)
        poolwatch.instrument(engine, name="shop")
        def work():
            while True:
                with engine.connect():
                    time.sleep(random.uniform(0.002, 0.01))
                time.sleep(0.005)
        for _ in range(6):
            threading.Thread(target=work, daemon=True).start()
        print("ready", flush=True)
        time.sleep(600)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", app], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            command = [sys.executable, "-m", "poolwatch", "advise", "--seconds", "6"]
            told = subprocess.run(command, capture_output=True, text=True, check=True)
            as_json = subprocess.run(
                [*command, "--json"], capture_output=True, text=True, check=True
            )
        finally:
            process.kill()
    assert "shop: " in told.stdout
    assert "queueing theory says" in told.stdout
    (advice,) = json.loads(as_json.stdout)["advice"]
    assert 2 <= advice["size"] <= 6
    assert advice["thin"] is None
