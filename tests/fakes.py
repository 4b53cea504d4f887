"""Records and sources for tests: keywords set fields, the others have defaults."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from poolwatch.model import (
    NO_SAMPLES,
    Counters,
    Distribution,
    Finding,
    Frame,
    Hold,
    PoolStats,
    Process,
    ServerRow,
    ServerStatus,
    Snapshot,
    Wait,
)


class FakeSource:
    """Returns its snapshots in turn, then the last one for ever; raises exceptions.

    ``snapshot()`` blocks while ``free`` is cleared.
    """

    def __init__(self, *answers: Snapshot | Exception | Callable[[], Snapshot]) -> None:
        self.answers = list(answers)
        self.calls = 0
        self.free = threading.Event()
        self.free.set()

    def snapshot(self) -> Snapshot:
        self.calls += 1
        self.free.wait(60)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Snapshot) else answer()


def counters(**changes: int) -> Counters:
    names = Counters.__dataclass_fields__
    return Counters(**{name: changes.get(name, 0) for name in names})


def times(p99: float, count: int = 100) -> Distribution:
    return Distribution(count, p99 * count / 3, p99, p99 / 4, p99 / 2, p99)


def frame(place: str, function: str = "work") -> Frame:
    file, _, line = place.rpartition(":")
    return Frame(file, int(line), function)


def pool(name: str = "orders", **changes: Any) -> PoolStats:
    values: dict[str, Any] = {
        "id": name,
        "name": name,
        "kind": "QueuePool",
        "url": f"postgresql://web:***@db/{name}",
        "size": 5,
        "max_overflow": 5,
        "timeout_s": 30.0,
        "checked_out": 1,
        "idle": 4,
        "overflow": 0,
        "waiting": 0,
        "counters": counters(checkouts=1),
        "wait_s": NO_SAMPLES,
        "hold_s": NO_SAMPLES,
        "create_s": NO_SAMPLES,
    }
    return PoolStats(**{**values, **changes})


def server_row(state: str = "active", **changes: Any) -> ServerRow:
    values: dict[str, Any] = {
        "state": state,
        "state_age_s": 1.0,
        "xact_age_s": None,
        "wait_event": None,
        "query": "select 1",
        "blocked_by": (),
    }
    return ServerRow(**{**values, **changes})


def hold(id: str = "h1", **changes: Any) -> Hold:  # noqa: A002
    site = changes.pop("site", frame("/srv/app/orders/repo.py:55", "load"))
    values: dict[str, Any] = {
        "id": id,
        "pool": "orders",
        "backend_pid": None,
        "held_s": 1.0,
        "waited_s": 0.0,
        "thread": "worker-1",
        "task": None,
        "labels": {},
        "site": site,
        "stack": (site,) if site else (),
        "now": (),
        "statement": None,
        "in_sql_s": None,
        "in_transaction_idle_s": None,
        "verdict": "ok",
        "evidence": (),
        "server": None,
    }
    return Hold(**{**values, **changes})


def wait(id: str = "w1", **changes: Any) -> Wait:  # noqa: A002
    site = changes.pop("site", frame("/srv/app/pay/service.py:101", "pay"))
    values: dict[str, Any] = {
        "id": id,
        "pool": "orders",
        "waited_s": 2.0,
        "thread": "worker-9",
        "task": None,
        "labels": {},
        "site": site,
        "stack": (site,),
    }
    return Wait(**{**values, **changes})


def finding(kind: str = "exhausted", **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "kind": kind,
        "severity": "critical",
        "pool": "orders",
        "text": 'pool "orders" is exhausted: 10/10 out, 3 waiting',
        "proof": "nothing is free and requests wait",
        "remedy": "return the connection before the slow call",
    }
    return Finding(**{**values, **changes})


def server_status(*pools: str, **changes: Any) -> ServerStatus:
    values: dict[str, Any] = {
        "pools": pools or ("orders",),
        "source": "agent",
        "error": None,
        "address": "db:5432",
        "version": "18.4",
        "sessions": 61,
        "max_connections": 100,
        "read_s": 0.0012,
    }
    return ServerStatus(**{**values, **changes})


def process(*holds: Hold, **changes: Any) -> Process:
    values: dict[str, Any] = {
        "pid": 8812,
        "host": "web-1",
        "program": "app.py",
        "name": "orders-api",
        "python": "3.12.4",
        "poolwatch": "0.1.0",
        "started_at": "2026-01-01T12:00:00Z",
        "pools": (pool(checked_out=len(holds)),),
        "holds": holds,
        "waits": (),
        "sites": (),
        "findings": (),
        "servers": (server_status(),),
    }
    return Process(**{**values, **changes})


def snapshot(*processes: Process, **changes: Any) -> Snapshot:
    return Snapshot(processes=processes, **changes)
