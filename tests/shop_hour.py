"""Fills a store with an hour of a shop: a leak at a quarter past fills a pool."""

from __future__ import annotations

import math
import random
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import fakes
from sqlalchemy import Engine, Table, insert

from poolwatch.model import BUCKETS, Finding, Frame, Hold, Process, Snapshot, Wait
from poolwatch.protocol import document
from poolwatch.sidecar.history import schema

START = 1_796_000_400.0  # 2026-11-30 01:00:00 UTC
SITES = {
    "shop/checkout/service.py:88": ("charge", 0.22, 3.0),
    "shop/orders/repository.py:55": ("load_cart", 0.03, 14.0),
    "shop/catalog/search.py:141": ("search", 0.05, 20.0),
    "shop/reports/export.py:203": ("rows", 1.6, 0.3),
    "shop/users/session.py:31": ("current_user", 0.004, 40.0),
    "shop/stock/sync.py:77": ("reserve", 0.09, 3.5),
    "shop/mail/outbox.py:19": ("next_batch", 0.02, 1.0),
    "shop/payments/webhooks.py:64": ("settle", 0.12, 0.8),
}
"""Function, seconds of a hold, holds a second."""
LEAK = Frame("/srv/shop/reports/export.py", 203, "rows")
ROUTE = Frame("/srv/shop/web/routes.py", 112, "export_orders")
STARLETTE = Frame("/usr/lib/python3.12/site-packages/starlette/routing.py", 73, "app")


class Store:
    """Adds rows to the tables."""

    def __init__(self, engine: Engine, seed: int = 1) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.rows: dict[Table, list[dict[str, Any]]] = {}
        self.known: set[object] = set()
        self._incidents = 0

    def add(self, table: Table, **row: Any) -> None:
        self.rows.setdefault(table, []).append(row)

    def write(self) -> None:
        with self.engine.begin() as connection:
            for table, rows in self.rows.items():
                connection.execute(insert(table), rows)
        self.rows.clear()

    def process(self, host: str, pid: int, until: float, **changes: Any) -> int:
        process = schema.identifier(host, pid, START)
        values = {
            "program": "gunicorn",
            "name": "shop",
            "python": "3.12.8",
            "poolwatch": "0.1.0",
            "ended_at": None,
        }
        self.add(
            schema.processes,
            id=process,
            host=host,
            pid=pid,
            started_at=START - 3600,
            last_seen_at=until,
            **{**values, **changes},
        )
        return process

    def pool(self, process: int, name: str, size: int, overflow: int) -> int:
        pool = schema.identifier(process, name)
        self.add(
            schema.pools,
            id=pool,
            process_id=process,
            pool=name,
            name=name,
            kind="QueuePool",
            url=f"postgresql://shop:***@db/{name}",
            size=size,
            max_overflow=overflow,
            timeout_s=30.0,
        )
        return pool

    def call_site(self, frame: Frame, path: str | None = None) -> int:
        site = schema.identifier(*frame)
        if site not in self.known:
            self.known.add(site)
            self.add(schema.call_sites, id=site, **frame._asdict(), path=path)
        return site

    def minute(self, minute: int, pool: int, out: float, **changes: Any) -> None:
        """A minute of a pool: ``out`` connections on average."""
        waiting = changes.pop("waiting", 0)
        slots = changes.pop("slots", 15)
        checkouts = changes.get("checkouts", round(out * 900))
        hold_s, wait_s = changes.pop("hold", 0.05), changes.pop("wait", 0.0004)
        row = {
            "looks": 60,
            "out_sum": round(out * 60),
            "out_max": min(slots, math.ceil(out * 1.7 + 1)),
            "waiting_sum": round(waiting * 60),
            "waiting_max": math.ceil(waiting * 1.5),
            "checkouts": checkouts,
            "timeouts": 0,
            "connects": 0,
            "leaked": 0,
            **self._durations("wait", wait_s, checkouts),
            **self._durations("hold", hold_s, checkouts),
        }
        self.add(schema.pool_minutes, minute=minute, pool_id=pool, **{**row, **changes})

    def _durations(self, name: str, mean: float, count: int) -> dict[str, Any]:
        drawn = sorted(
            self.random.lognormvariate(math.log(mean), 1.4) for _ in range(40)
        )
        up_to = [bisect_left(drawn, bound) * count // 40 for bound in BUCKETS]
        return {
            f"{name}_count": count,
            f"{name}_s": sum(drawn) * count / 40,
            f"{name}_up_to": up_to,
        }

    def usage(self, table: Table, held_s: float, count: int, **keys: Any) -> None:
        values = {"wait_s": held_s / 40, "wait_caused_s": held_s / 25, "leaked": 0}
        self.add(table, held_s=held_s, count=count, **{**values, **keys})

    def incident(
        self,
        process: int,
        finding: Finding,
        begin: float,
        end: float | None,
        *,
        kept: Process | None = None,
        last: float = 0.0,
        pool: str | None = "checkout",
    ) -> None:
        self._incidents += 1
        name = f"i{self._incidents}"
        self.add(
            schema.incidents,
            id=name,
            process_id=process,
            pool=pool,
            kind=finding.kind,
            severity=finding.severity,
            started_at=begin,
            last_seen_at=end or last,
            ended_at=end,
            process="shop",
            text=finding.text,
            proof=finding.proof,
            remedy=finding.remedy,
            sites=[site._asdict() for site in finding.sites],
            identity=self._incidents,
        )
        if kept is not None:
            self.snapshot(process, kept, begin + self._incidents / 1e6, name)

    def snapshot(
        self, process: int, kept: Process, at: float, incident: str | None = None
    ) -> None:
        text = document.to_json(Snapshot((kept,)), viewers=True)
        self.add(
            schema.snapshots,
            at=at,
            process_id=process,
            newest=incident is None,
            incident_id=incident,
            document=zlib.compress(text.encode()),
        )


def fill_hour(engine: Engine, *, processes: int = 4, faults: bool = True) -> None:
    """An hour of ``processes`` processes on two hosts, with or without faults."""
    store = Store(engine)
    end = START + 3600
    for number in range(processes):
        host = f"web-{1 + number % 2}"
        process = store.process(host, 4100 + number, end)
        pools = {
            "checkout": store.pool(process, "checkout", 5, 10),
            "catalog": store.pool(process, "catalog", 10, 10),
            "sessions": store.pool(process, "sessions", 5, 5),
        }
        for at in range(60):
            _minute_of_shop(store, pools, at, number, faults=faults)
        if faults:
            _leak_fills_pool(store, process, host, 4100 + number)
            if number == 1:
                _other_faults(store, process, end)
    store.write()


def _minute_of_shop(
    store: Store, pools: dict[str, int], at: int, number: int, *, faults: bool
) -> None:
    minute = int(START) + at * 60
    wave = 1 + 0.35 * math.sin(at / 9 + number) + store.random.uniform(-0.12, 0.12)
    leaked = min(11.5, max(0, at - 14) * 0.8) if faults and at < 38 else 0.0
    full = faults and 27 <= at < 38
    store.minute(
        minute,
        pools["checkout"],
        min(14.9, 3.4 * wave + leaked),
        waiting=store.random.uniform(6, 14) if full else 0,
        wait=2.8 if full else 0.0004,
        checkouts=900 if full else 3100,
        timeouts=store.random.randint(1, 6) if full and at > 29 else 0,
        leaked=1 if faults and 14 <= at < 28 else 0,
        out_max=15 if full else min(15, math.ceil(5.6 * wave + leaked)),
    )
    store.minute(minute, pools["catalog"], 2.6 * wave, slots=20, hold=0.04)
    store.minute(minute, pools["sessions"], 0.5 * wave, slots=10, hold=0.003)
    for place, (function, hold_s, rate) in SITES.items():
        path, _, line = place.rpartition(":")
        site = store.call_site(Frame(f"/srv/{path}", int(line), function), path)
        held = hold_s * rate * 60 * wave
        leak = place.startswith("shop/reports")
        if leak:
            held += leaked * 60
        in_catalog = "catalog" in place
        store.usage(
            schema.site_minutes,
            held,
            round(rate * 60 * wave),
            minute=minute,
            pool_id=pools["catalog" if in_catalog else "checkout"],
            call_site_id=site,
            leaked=int(leak and bool(leaked)),
            wait_caused_s=held / 3 if leak and full else held / 900,
        )
        endpoint = "/" + path.split("/")[1]
        store.usage(
            schema.label_minutes,
            held,
            round(rate * 60 * wave),
            minute=minute,
            pool_id=pools["catalog" if in_catalog else "checkout"],
            label="endpoint",
            value=endpoint,
        )


def _leak_fills_pool(store: Store, process: int, host: str, pid: int) -> None:
    holds = [*_leaked(), _working()]
    waits = [
        fakes.wait(f"q{n}", pool="checkout", waited_s=1.5 * n + 0.7) for n in range(8)
    ]
    leak, full = _leak(holds[:-1]), _full(holds, waits)
    kept = fakes.process(
        *holds,
        pid=pid,
        host=host,
        name="shop",
        pools=(fakes.pool("checkout", checked_out=15, size=5, max_overflow=10),),
        waits=tuple(waits),
        findings=(full, leak),
        servers=(),
    )
    store.incident(process, leak, START + 900 + pid % 7, START + 2290, kept=kept)
    store.incident(process, full, START + 1640 + pid % 9, START + 2281, kept=kept)


def _leaked() -> list[Hold]:
    return [
        fakes.hold(
            f"h{n}",
            pool="checkout",
            site=LEAK,
            stack=(LEAK, ROUTE, STARLETTE),
            held_s=31.0 + 40 * n,
            verdict="leaked",
            labels={"endpoint": "/reports", "tenant": "acme"},
            thread=f"AnyIO worker {n}",
            statement="SELECT id, total, customer_id FROM orders WHERE shop_id = $1",
            evidence=("nothing but a global of shop.reports.cache refers to it",),
            backend_pid=7000 + n,
            server=fakes.server_row(
                "idle in transaction", state_age_s=30.0 + 40 * n, xact_age_s=31.0
            ),
        )
        for n in range(5)
    ]


def _working() -> Hold:
    return fakes.hold(
        "w",
        pool="checkout",
        site=Frame("/srv/shop/checkout/service.py", 88, "charge"),
        stack=(Frame("/srv/shop/checkout/service.py", 88, "charge"), STARLETTE),
        now=(
            Frame("/usr/lib/python3.12/ssl.py", 1232, "read"),
            Frame("/srv/shop/checkout/stripe.py", 41, "confirm"),
            Frame("/srv/shop/checkout/service.py", 93, "charge"),
        ),
        held_s=2.2,
    )


def _leak(held: Sequence[Hold]) -> Finding:
    return Finding(
        "leaked.abandoned",
        "critical",
        "checkout",
        "shop/reports/export.py:203 has abandoned 5 connections, the oldest for 3m11s",
        "over the threshold; rows() is on no running stack, and the connections are "
        "kept by nothing but the global shop.reports.cache._exports",
        "Close the generator of rows() where it is no longer read: "
        "contextlib.closing(rows(...)) in shop/web/routes.py:112, or read it to the "
        "end.",
        tuple(each.id for each in held),
        (),
        (LEAK,),
    )


def _full(held: Sequence[Hold], waits: Sequence[Wait]) -> Finding:
    return Finding(
        "exhausted",
        "critical",
        "checkout",
        "pool 'checkout' is exhausted: 15 of 15 connections out, 8 requests waiting, "
        "the longest for 11s",
        "nothing is free and requests wait; 11 of 15 are held at "
        "shop/reports/export.py:203",
        "Return the connections of shop/reports/export.py:203 first: they are leaked. "
        "A larger pool would only be full later.",
        tuple(each.id for each in held),
        tuple(each.id for each in waits),
        (LEAK,),
    )


def _other_faults(store: Store, process: int, end: float) -> None:
    slow = fakes.finding(
        "held_across_io",
        severity="warning",
        pool="checkout",
        text="shop/checkout/service.py:88 holds connections mostly during work "
        "outside the database: only 12% of the held time is SQL",
        proof="640 holds lasted 141s together: 17s in statements, 98s idle in a "
        "transaction",
        remedy="Call the payment service before the session is opened, or after "
        "it is committed.",
        sites=(Frame("/srv/shop/checkout/service.py", 88, "charge"),),
    )
    store.incident(process, slow, START + 300, None, last=end)
    twice = fakes.finding(
        "lock_wait",
        severity="warning",
        text="shop/stock/sync.py:77 waits for a lock that shop/mail/outbox.py:19 holds",
        proof="pg_blocking_pids(7031) = 7002; waiting for 4.1s",
        remedy="Commit in outbox.next_batch() before the mails are sent.",
        sites=(Frame("/srv/shop/stock/sync.py", 77, "reserve"),),
    )
    for begin in (400, 1200, 2900, 3300):
        store.incident(process, twice, START + begin, START + begin + 9)
