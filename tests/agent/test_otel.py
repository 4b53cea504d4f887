"""OpenTelemetry inside the application: the nine metrics are equal to the truth."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_core import book_of
from helpers import LONG_S, Driver, until
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otlp_receiver import Receiver
from sqlalchemy import create_engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

import poolwatch
from poolwatch.agent import otel
from poolwatch.agent.instrument import agent
from poolwatch.agent.otel import Recorded
from poolwatch.ledger.histogram import Histogram
from poolwatch.model import BUCKETS
from poolwatch.protocol.pool_metrics import INSTRUMENTS

PREFIX = "db.client.connection."
NAMES = {each.name for each in INSTRUMENTS}


class Exported:
    """A MeterProvider, and what its reader collects."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(
            metric_readers=[self.reader], shutdown_on_exit=False
        )

    def points(self, name: str) -> dict[tuple[Any, ...], Any]:
        """The newest points of one metric by pool (and state)."""
        data = self.reader.get_metrics_data()
        found = [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == PREFIX + name
        ]
        points = [point for metric in found for point in metric.data.data_points]
        return {tuple((each.attributes or {}).values()): each for each in points}

    def values(self, name: str) -> dict[tuple[Any, ...], Any]:
        return {key: point.value for key, point in self.points(name).items()}


@pytest.fixture
def exported(instrument: Any) -> Iterator[Exported]:
    found = Exported()
    yield found
    otel.stop_exports()
    for each in otel._exports:
        agent.ledger.observers.remove(each)
    otel._exports.clear()


def use(pool: Any, times: int = 1) -> None:
    for _ in range(times):
        pool.connect().close()


def recorded_as(samples: list[float], batches: int) -> list[float]:
    """What a histogram is given for these durations, batch by batch."""
    truth, recorded, given = Histogram(), Recorded(), []
    size = -(-len(samples) // batches)
    for start in range(0, len(samples), size):
        truth.add(samples[start : start + size])
        for duration, count in recorded.add(truth.distribution(buckets=True)):
            given += [duration] * count
    return given


def in_buckets(samples: list[float]) -> list[int]:
    counts = [0] * (len(BUCKETS) + 1)
    for each in samples:
        counts[bisect_left(BUCKETS, each)] += 1
    return counts


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("batches", [1, 7, 200])
def test_durations_stand_for_others(seed: int, batches: int) -> None:
    chance = random.Random(seed)
    samples = [
        chance.choice(
            [0.0, *BUCKETS, 10.0000001, chance.expovariate(1), 90 * chance.random()]
        )
        for _ in range(chance.choice([1, 2, 30, 1000]))
    ]
    given = recorded_as(samples, batches)
    assert in_buckets(given) == in_buckets(samples)
    assert sum(given) == pytest.approx(sum(samples), rel=1e-8)
    assert max(given) == max(samples)


def test_nothing_is_recorded_twice_when_a_hold_is_missed_once() -> None:
    recorded, truth = Recorded(), Histogram()
    truth.add([0.2, 0.3])
    recorded.add(truth.distribution(buckets=True))
    missed = Histogram()
    missed.add([0.2])
    assert recorded.add(missed.distribution(buckets=True)) == []
    truth.add([0.4])
    ((duration, count),) = recorded.add(truth.distribution(buckets=True))
    assert (duration, count) == (0.4, 1)


def test_nine_metrics_in_one_collection(exported: Exported) -> None:
    pool = QueuePool(Driver, pool_size=2, max_overflow=1, timeout=0)
    poolwatch.instrument(pool, name="orders")
    poolwatch.export_metrics(exported.provider)
    held = [pool.connect() for _ in range(3)]
    with pytest.raises(PoolTimeoutError):
        pool.connect()
    held.pop().close()

    assert exported.values("count") == {("orders", "used"): 2, ("orders", "idle"): 1}
    assert exported.values("idle.max") == {("orders",): 2}
    assert exported.values("idle.min") == {("orders",): 0}
    assert exported.values("max") == {("orders",): 3}
    assert exported.values("pending_requests") == {("orders",): 0}
    assert exported.values("timeouts") == {("orders",): 1}
    truth = poolwatch.snapshot().processes[0].pools[0]
    for name, distribution in [
        ("create_time", truth.create_s),
        ("wait_time", truth.served_s),
        ("use_time", truth.hold_s),
    ]:
        (point,) = exported.points(name).values()
        assert distribution is not None
        assert point.count == distribution.count > 0
        assert point.sum == pytest.approx(distribution.sum)
        assert tuple(point.explicit_bounds) == BUCKETS
    use(pool, 5)  # new ones are in the collection that reads them
    (point,) = exported.points("use_time").values()
    assert point.count == 6


def test_nothing_is_added_to_a_checkout(exported: Exported) -> None:
    poolwatch.export_metrics(exported.provider)
    assert agent.ledger.observers.checked_out is None
    assert agent.ledger.observers.ended is None


def test_it_is_idempotent_and_watches_every_pool(exported: Exported) -> None:
    for _ in range(3):
        poolwatch.export_metrics(exported.provider)
    pool = create_engine("sqlite://", poolclass=QueuePool).pool
    use(pool, 4)
    (point,) = exported.points("use_time").values()
    assert point.count == 4


def test_pools_of_one_name_are_told_apart(exported: Exported) -> None:
    pools = [QueuePool(Driver, pool_size=n) for n in (1, 2, 3)]
    for pool in pools:
        poolwatch.instrument(pool, name="orders")
    poolwatch.export_metrics(exported.provider)
    names = {("orders",): 1, ("orders (2)",): 2, ("orders (3)",): 3}
    assert exported.values("idle.max") == names
    poolwatch.uninstrument(pools.pop(1))  # the others keep their names
    assert exported.values("idle.max") == {("orders",): 1, ("orders (3)",): 3}


def test_a_database_tells_more_than_a_number(exported: Exported) -> None:
    engines = [
        create_engine(f"postgresql+psycopg2://u:secret@{host}/shop", pool_size=1)
        for host in ("one", "two")
    ]
    for engine in engines:
        poolwatch.instrument(engine)
    poolwatch.export_metrics(exported.provider)
    assert set(exported.values("idle.max")) == {("shop",), ("two/shop",)}


@pytest.mark.parametrize("way", ["collected", "uninstrumented"])
def test_pools_that_come_and_go_are_one_series(exported: Exported, way: str) -> None:
    poolwatch.instrument(lasting := QueuePool(Driver), name="lasting")
    poolwatch.export_metrics(exported.provider)
    for _ in range(5):
        pool = QueuePool(Driver, pool_size=1, max_overflow=0, timeout=0)
        poolwatch.instrument(pool, name="short")
        use(pool, 3)
        held = pool.connect()
        with pytest.raises(PoolTimeoutError):
            pool.connect()
        held.close()
        if way == "uninstrumented":
            poolwatch.uninstrument(pool)
        del pool, held
        gc.collect()
    for name in ("use_time", "wait_time"):
        assert exported.points(name)["short",].count == 20
    assert exported.values("timeouts") == {("short",): 5, ("lasting",): 0}

    def only_the_lasting_one():
        gc.collect()  # the agent may just have looked at the last one
        return set(exported.values("max")) == {("lasting",)}

    until(only_the_lasting_one)
    assert lasting.status()


def test_a_collected_pool_of_a_driver_leaves_its_figures(exported: Exported) -> None:
    from psycopg2.pool import SimpleConnectionPool

    pool = SimpleConnectionPool(0, 1, "host=nowhere.invalid")
    watch = poolwatch.instrument(pool, name="psycopg2")
    poolwatch.export_metrics(exported.provider)
    agent.ledger.pools[watch._pool_id or ""].timed_out(1.0)
    gc.disable()  # the cycle of its hooks is still there
    try:
        del pool
        assert exported.values("timeouts") == {("psycopg2",): 1}
    finally:
        gc.enable()


def test_the_end_and_a_new_beginning(exported: Exported) -> None:
    pool = QueuePool(Driver)
    poolwatch.instrument(pool, name="orders")
    poolwatch.export_metrics(exported.provider)
    use(pool)
    otel.stop_exports()
    assert exported.values("count") == {}
    poolwatch.export_metrics(exported.provider)
    use(pool, 2)
    (point,) = exported.points("use_time").values()
    assert point.count == 3


def test_more_durations_than_a_collection_has_time_for(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = QueuePool(Driver)
    poolwatch.instrument(pool)
    use(pool, 2000)
    poolwatch.export_metrics(exported.provider)
    monkeypatch.setattr(otel, "_SHARE_OF_TIME", 0)
    assert exported.points("use_time") == {}
    monkeypatch.undo()
    use(pool, 10)
    (point,) = exported.points("use_time").values()
    assert point.count == 2010


def test_a_provider_that_is_shut_down(
    exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    pool = QueuePool(Driver)
    poolwatch.instrument(pool)
    poolwatch.export_metrics(exported.provider)
    exported.provider.shutdown()
    use(pool)
    poolwatch.export_metrics(exported.provider)
    late = MeterProvider(shutdown_on_exit=False)
    late.shutdown()
    poolwatch.export_metrics(late)
    use(pool)


def test_a_broken_pool_raises_nothing(
    exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    pools = [QueuePool(Driver) for _ in range(2)]
    for pool, name in zip(pools, ("broken", "sound"), strict=True):
        poolwatch.instrument(pool, name=name)
    poolwatch.export_metrics(exported.provider)
    ledger = book_of(pools[0])
    gauges = ledger.gauges
    ledger.gauges = lambda: 1 / 0  # type: ignore[assignment, return-value]
    for _ in range(2):
        assert exported.values("idle.max") == {("sound",): 5}
    assert caplog.text.count("could not read the metrics") == 1
    ledger.gauges = gauges
    assert exported.values("idle.max") == {("broken",): 5, ("sound",): 5}


def test_bad_arguments(instrument: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="must be a MeterProvider of OpenTelemetry"):
        poolwatch.export_metrics(3)  # type: ignore[arg-type]
    monkeypatch.setenv("POOLWATCH_DISABLE", "1")
    poolwatch.export_metrics(3)  # type: ignore[arg-type] - does nothing


def test_without_opentelemetry(apps: Any) -> None:
    done = apps.run(
        """
        import sys
        sys.modules["opentelemetry"] = None
        import poolwatch
        from poolwatch import *
        try:
            poolwatch.export_metrics()
        except poolwatch.PoolwatchError as error:
            print(error)
        """
    )
    assert done.stdout == (
        "export_metrics() needs OpenTelemetry; install it with: "
        "python -m pip install 'poolwatch[otel]'\n"
    ), done.stderr


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


def instrumented(apps: Any, receiver: Receiver, source: str, **environ: str) -> Any:
    """Run a program under ``opentelemetry-instrument``."""
    command = Path(sys.executable).with_name("opentelemetry-instrument")
    done = subprocess.run(
        [command, sys.executable, apps.write(source)],
        capture_output=True,
        check=False,
        text=True,
        timeout=2 * LONG_S,
        env={
            **apps.environ,
            **receiver.environ,
            "PYTHONWARNINGS": "default",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            **environ,
        },
        cwd=apps.home,
    )
    assert done.returncode == 0, done.stderr
    assert "poolwatch could not" not in done.stderr
    return done


APP = """
import json, sys, threading
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError
from sqlalchemy.pool import QueuePool

def work(engine, times):
    for _ in range(times):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

def main():
    engine = create_engine(
        "sqlite:///orders.db", poolclass=QueuePool, pool_size=2, max_overflow=1,
        pool_timeout=0.2,
    )
    with engine.connect(), engine.connect(), engine.connect():
        try:
            engine.connect()
        except TimeoutError:
            pass
    threads = [threading.Thread(target=work, args=(engine, 300)) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    held = engine.connect()
    import poolwatch
    (pool,) = poolwatch.snapshot().processes[0].pools
    print(json.dumps({
        "create": [pool.create_s.count, pool.create_s.sum, pool.create_s.up_to],
        "wait": [pool.served_s.count, pool.served_s.sum, pool.served_s.up_to],
        "use": [pool.hold_s.count, pool.hold_s.sum, pool.hold_s.up_to],
    }))
    return held

if __name__ == "__main__":
    held = main()
"""


def test_opentelemetry_instrument(apps: Any, receiver: Receiver) -> None:
    truth = json.loads(instrumented(apps, receiver, APP).stdout)
    assert set(receiver.series) >= NAMES
    units = {name: receiver.units[name] for name in NAMES}
    assert units == {each.name: each.unit for each in INSTRUMENTS}
    last = {
        (name.removeprefix(PREFIX), dict(attributes).get(f"{PREFIX}state")): point
        for name in NAMES
        for attributes, point in receiver.newest[name].items()
        if ("db.client.connection.pool.name", "orders.db") in attributes
    }
    numbers = {
        key: point.as_int for key, point in last.items() if not key[0].endswith("_time")
    }
    assert numbers == {
        ("count", "used"): 1,
        ("count", "idle"): last["count", "idle"].as_int,
        ("idle.max", None): 2,
        ("idle.min", None): 0,
        ("max", None): 3,
        ("pending_requests", None): 0,
        ("timeouts", None): 1,
    }
    for name, (count, seconds, up_to) in truth.items():
        point = last[f"{name}_time", None]
        assert point.count == count > 0
        assert point.sum == pytest.approx(seconds, rel=1e-6)
        cumulated = [sum(point.bucket_counts[: n + 1]) for n in range(len(BUCKETS))]
        assert cumulated == up_to
        assert tuple(point.explicit_bounds) == BUCKETS
    assert truth["use"][0] == 903
    assert truth["wait"][0] == 904


def test_it_can_be_switched_off(apps: Any, receiver: Receiver) -> None:
    source = APP.replace("(pool,) =", "exit() #")
    instrumented(apps, receiver, source, POOLWATCH_DISABLE="1")
    assert not NAMES & set(receiver.series)


def test_engines_of_a_function_that_has_returned(apps: Any, receiver: Receiver) -> None:
    instrumented(
        apps,
        receiver,
        """
        import gc
        from sqlalchemy import create_engine
        def job(name):
            engine = create_engine(f"sqlite:///{name}.db")
            for _ in range(3):
                engine.connect().close()
            engine.dispose()
        for _ in range(4):
            job("early")
            gc.collect()
        job("late")
        """,
        OTEL_METRIC_EXPORT_INTERVAL="60000",
    )
    counts = {
        dict(attributes)["db.client.connection.pool.name"]: point.count
        for attributes, point in receiver.series[f"{PREFIX}use_time"].items()
    }
    assert counts == {"early.db": 12, "late.db": 3}


def test_a_forked_child_exports_its_own(apps: Any, receiver: Receiver) -> None:
    instrumented(
        apps,
        receiver,
        """
        import os, sys, time
        from sqlalchemy import create_engine
        from sqlalchemy.pool import QueuePool
        engine = create_engine("sqlite:///child.db", poolclass=QueuePool)
        if os.fork() == 0:
            for _ in range(7):
                engine.connect().close()
            from opentelemetry import metrics
            metrics.get_meter_provider().force_flush()
            os._exit(0)
        os.wait()
        """,
    )
    counts = [point.count for point in receiver.series[f"{PREFIX}use_time"].values()]
    assert counts == [7]


def test_the_instrumentor_in_code(exported: Exported) -> None:
    from poolwatch.agent.otel_instrumentor import PoolwatchInstrumentor

    instrumentor = PoolwatchInstrumentor()
    assert not instrumentor.instrumentation_dependencies()
    instrumentor.instrument(meter_provider=exported.provider)
    pool = create_engine("sqlite://", poolclass=QueuePool).pool
    use(pool, 2)
    assert [p.count for p in exported.points("use_time").values()] == [2]
    instrumentor.uninstrument()
    assert not agent.ledger.pools
    assert "connect" not in pool.__dict__
    assert exported.values("count") == {}


def test_two_providers(exported: Exported) -> None:
    other = Exported()
    pool = QueuePool(Driver)
    poolwatch.instrument(pool)
    poolwatch.export_metrics(exported.provider)
    use(pool, 2)
    poolwatch.export_metrics(other.provider)
    use(pool, 2)
    for each in (exported, other, exported):
        assert [p.count for p in each.points("use_time").values()] == [4]
