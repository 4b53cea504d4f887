"""The sidecar pushes the nine metrics by OTLP."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from helpers import Driver, until
from otlp_receiver import Receiver
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

import poolwatch
from poolwatch.errors import UsageError
from poolwatch.model import BUCKETS, Process, Snapshot
from poolwatch.protocol.pool_metrics import INSTRUMENTS
from poolwatch.sidecar.looks import Look
from poolwatch.sidecar.otlp import OtlpPush

PREFIX = "db.client.connection."
POOL = f"{PREFIX}pool.name"
GRPC = "opentelemetry.exporter.otlp.proto.grpc"


@pytest.fixture(autouse=True)
def sdk_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A push takes the SDK's log; other tests have it back."""
    sdk = logging.getLogger("opentelemetry")
    monkeypatch.setattr(sdk, "handlers", [])
    monkeypatch.setattr(sdk, "propagate", True)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    found = Receiver()
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    for name, value in found.environ.items():
        monkeypatch.setenv(name, value)
    yield found
    found.close()


@pytest.fixture
def push(receiver: Receiver) -> Iterator[OtlpPush]:
    found = OtlpPush()
    yield found
    found.close()


def look(*processes: Process) -> Look:
    return Look(time.time(), 0.01, Snapshot(processes))


def this_process() -> Process:
    (found,) = poolwatch.snapshot().processes
    return found


def received(receiver: Receiver, push: OtlpPush, *processes: Process) -> Any:
    """What is received after this look, by metric: points by pid and pool."""
    push.take(look(*processes))
    before = receiver.requests
    until(lambda: receiver.requests >= before + 2)
    return {
        name.removeprefix(PREFIX): {
            tuple(v for k, v in sorted(attributes) if k in ("process.pid", POOL)): point
            for attributes, point in points.items()
        }
        for name, points in receiver.newest.items()
    }


@pytest.fixture
def process(instrument: Any) -> Process:
    pool = QueuePool(Driver, pool_size=1, max_overflow=0, timeout=0)
    instrument(pool, name="orders")
    for _ in range(5):
        pool.connect().close()
    held = pool.connect()
    with pytest.raises(PoolTimeoutError):
        pool.connect()
    found = this_process()
    held.close()
    return replace(found, pid=7, host="web1", name="shop")


def test_nine_metrics(receiver: Receiver, push: OtlpPush, process: Process) -> None:
    found = received(receiver, push, process)
    assert {PREFIX + name for name in found} == {each.name for each in INSTRUMENTS}
    attributes = {key for key, _ in next(iter(receiver.newest[f"{PREFIX}max"]))}
    assert attributes == {POOL, "service.name", "host.name", "process.pid"}
    at = ("orders", 7)
    assert found["max"][at].as_int == 1
    assert found["timeouts"][at].as_int == 1
    (pool,) = process.pools
    use = found["use_time"][at]
    assert use.count == pool.hold_s.count == 5
    assert use.sum == pool.hold_s.sum
    assert use.max == pool.hold_s.max
    assert tuple(use.bucket_counts) == pool.hold_s.in_buckets
    assert tuple(use.explicit_bounds) == BUCKETS
    assert found["wait_time"][at].count == 6  # that of the open hold, too


def test_processes_and_pools_apart(
    receiver: Receiver, push: OtlpPush, process: Process
) -> None:
    (pool,) = process.pools
    twice = replace(process, pools=(pool, replace(pool, id="p99")))
    other = replace(process, pid=8)
    found = received(receiver, push, twice, other)
    assert set(found["max"]) == {("orders", 7), ("orders (2)", 7), ("orders", 8)}
    found = received(receiver, push, other)  # who has gone has no series
    assert set(found["max"]) == {("orders", 8)}


def test_delta(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, process: Process
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    push = OtlpPush()
    at = ("orders", 7)
    found = received(receiver, push, process)
    assert found["use_time"][at].count == 0  # all was in the first push
    assert found["max"][at].as_int == 1
    push.close()


def test_the_last_look_is_pushed(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, process: Process
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "600000")
    push = OtlpPush()
    push.take(look(process))
    push.close()
    assert receiver.requests == 1


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_receiver_that_hangs_delays_nothing(
    monkeypatch: pytest.MonkeyPatch, process: Process, protocol: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        push = OtlpPush()
        push.take(look(process))
        until(lambda: push._sent)
        for _ in range(100):
            push.take(look(process))
        ended = threading.Event()
        threading.Thread(target=lambda: (push.close(), ended.set())).start()
        assert ended.wait(10)


def test_a_receiver_that_is_away_is_said_once_without_its_url(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, process: Process
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_TIMEOUT", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1/s3cret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization s3cret")
    push = OtlpPush()
    push.take(look(process))
    said = "the receiver of OTLP does not take the metrics"
    until(lambda: said in caplog.text)
    push.close()
    assert caplog.text.count(said) == 1
    assert "OpenTelemetry refuses a setting" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier/pigeon", "must be grpc or http/proto"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-5", "refuses its OTEL_. environment"),
        ("OTEL_SDK_DISABLED", "true", "would push nothing"),
    ],
)
def test_bad_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=sentence):
        OtlpPush()


def test_before_the_first_look(push: OtlpPush) -> None:
    push.take(Look(time.time(), 0.0, Snapshot()))
    assert push._collect(None) is None


@pytest.mark.parametrize("missing", ["opentelemetry", GRPC])
def test_a_missing_extra_is_one_sentence(apps: Any, missing: str) -> None:
    done = apps.run(
        f"""
        import sys
        sys.modules[{missing!r}] = None
        from poolwatch.errors import MissingExtraError
        try:
            from poolwatch.sidecar.otlp import OtlpPush
            OtlpPush()
        except MissingExtraError as error:
            print(error)
        """
    )
    assert done.stdout.startswith("--otlp needs OpenTelemetry; install"), done.stderr
