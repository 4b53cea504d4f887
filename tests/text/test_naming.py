"""The names of processes, pools and tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import hold, pool, process, snapshot, wait

from poolwatch.commands.ps_table import Style, render
from poolwatch.text.naming import (
    OTHER_POOLS,
    PoolNames,
    holder_name,
    numbered,
    process_name,
    task_name,
    with_names,
)

MIDDLEWARE = (
    "starlette.middleware.base.BaseHTTPMiddleware.__call__.<locals>.call_next."
    "<locals>.coro"
)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (MIDDLEWARE, "call_next.coro"),
        (
            "uvicorn.protocols.http.h11_impl.RequestResponseCycle.run_asgi",
            "RequestResponseCycle.run_asgi",
        ),
        ("anyio.to_thread.run_sync", "to_thread.run_sync"),
        ("Task-123", "Task-123"),
        ("starlette", "starlette"),
        ("shop.jobs.export.<locals>.run", "shop.jobs.export.<locals>.run"),
        ("asyncio is fun. Really.", "asyncio is fun. Really."),
        ("", ""),
    ],
)
def test_task_names(name, short):
    assert task_name(name) == short


def test_the_holder_is_the_task_or_else_the_thread():
    assert holder_name(hold(task=MIDDLEWARE)) == "call_next.coro"
    assert holder_name(wait(task=None)) == "worker-9"
    assert holder_name(wait(thread=None)) == "?"


def names(*pools):
    named = with_names(process(pools=pools))
    return [each.name for each in named.pools]


def test_pools_are_told_apart_by_their_database():
    one = pool("main", id="p1", url="postgresql://web:***@db/orders")
    two = pool("main", id="p2", url="postgresql://web:***@db/audit")
    other = pool("cache", id="p3", url=None)
    assert names(one, two, other) == ["main (orders)", "main (audit)", "cache"]


def test_pools_on_databases_of_one_name_are_told_apart_by_their_host():
    one = pool("orders", id="p1", url="postgresql+psycopg2://web:***@a:5432/orders")
    two = pool("orders", id="p2", url="postgresql+psycopg2://web:***@b/orders?x=1")
    local = pool("orders", id="p3", url="postgresql:///orders?host=/run/pg")
    assert names(one, two, local) == ["a:5432/orders", "b/orders", "/run/pg/orders"]


def test_names_that_cannot_be_told_apart_stay():
    alike = [pool("orders", id=f"p{n}") for n in range(3)]
    assert names(*alike) == ["orders"] * 3
    odd = pool("orders", id="p1", url="postgresql://[half/orders")
    assert names(odd, pool("orders", id="p2", url=None)) == ["orders", "orders"]


def test_distinct_names_stay():
    one = process(pools=(pool("orders"), pool("audit")))
    assert with_names(one) is one


def test_ps_shows_the_longer_pool_names():
    one = pool("main", id="p1", url="postgresql://web:***@db/orders")
    two = pool("main", id="p2", url="postgresql://web:***@db/audit")
    text = render(snapshot(process(pools=(one, two))), Style())
    assert "  main (orders) (QueuePool)" in text
    assert "  main (audit) (QueuePool)" in text


def test_only_workers_of_one_parent_are_numbered():
    def worker(pid, **changes):
        values = {"name": None, "parent": 7, "started_at": f"2026-01-01T12:00:0{pid}Z"}
        return process(pid=pid, **{**values, **changes})

    found = numbered([
        worker(3), worker(2), worker(4, host="web-2"), worker(5, parent=None),
        worker(6, name="other"), worker(8, parent=9),
    ])  # fmt: skip
    assert [each.worker for each in found] == [2, 1, None, None, None, None]
    assert [process_name(each) for each in found[:3]] == [
        "app.py, worker 2",
        "app.py, worker 1",
        "app.py",
    ]


def test_names_of_pools_in_metrics() -> None:
    names = PoolNames()
    first, second, third, elsewhere = (
        pool("shop", id=f"p{n}", url=url)
        for n, url in enumerate(["", "", "", "postgresql://two:5432/shop"])
    )
    assert names.of(first) == "shop"
    assert names.of(second) == "shop (2)"
    assert names.of(elsewhere) == "two:5432/shop"
    names.forget(first.id)
    assert names.of(second) == "shop (2)"  # a name stays
    assert names.of(third) == "shop"  # and goes to the next one
    assert names.of(replace(second, name="orders")) == "orders"
    many = [names.of(replace(first, id=f"q{n}", name=f"pool {n}")) for n in range(300)]
    assert len(set(many)) < 300
    assert many[-1] == OTHER_POOLS
