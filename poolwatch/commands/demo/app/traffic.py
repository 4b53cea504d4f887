"""The shop's customers: a small load generator, in threads."""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import poolwatch
from poolwatch.commands.demo.app import (
    orders,
    reindex,
    reports,
    schema,
    shipping,
    stock,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Visits:
    """Requests to one endpoint at a fixed rate, by one thread."""

    endpoint: str
    handler: Callable[[], object]
    every: float
    first: float = 0.0


def start() -> None:
    plan = [*_healthy(), *_faulty()]
    began = time.monotonic()
    for number, visits in enumerate(plan, 1):
        threading.Thread(
            target=_visit, args=(visits, began), name=f"web-{number}", daemon=True
        ).start()


def _healthy() -> list[Visits]:
    chance = random.Random(11)

    def any_order() -> int:
        return chance.randrange(1, schema.ORDERS + 1)

    return [
        Visits("GET /orders", orders.newest, every=0.21),
        Visits("GET /orders/{id}", lambda: orders.find(any_order()), every=0.13),
        Visits(
            "PATCH /orders/{id}",
            lambda: orders.rename_region(any_order(), chance.choice(schema.REGIONS)),
            every=0.37,
        ),
    ]


def _faulty() -> list[Visits]:
    """Return requests in pairs, half a period apart, so that one always runs."""
    lamp, chair = schema.SKUS
    return [
        Visits("GET /reports/north", lambda: reports.revenue("north"), every=3.0),
        Visits("GET /reports/south", lambda: reports.revenue("south"), every=3.0),
        Visits("GET /shipping/quote", lambda: shipping.quote(1), 8.0),
        Visits("GET /shipping/quote", lambda: shipping.quote(2), 8.0, first=4.0),
        Visits("POST /stock/reserve", lambda: stock.reserve(lamp), 10.0),
        Visits("POST /stock/reserve", lambda: stock.reserve(chair), 10.0, first=5.0),
        Visits("POST /stock", lambda: stock.restock(lamp, 1), 10.0, first=0.5),
        Visits("POST /stock", lambda: stock.restock(chair, 1), 10.0, first=5.5),
        Visits("POST /orders", lambda: orders.place("north", lamp, 20), 2.0),
        Visits("POST /orders", lambda: orders.place("south", chair, 80), 2.0, 1.0),
        Visits("GET /health", orders.highest_id, every=15.0, first=1.0),
        Visits("POST /reindex", reindex.rebuild, every=1.5),
    ]


def _visit(visits: Visits, began: float) -> None:
    for count in itertools.count():
        pause = began + visits.first + count * visits.every - time.monotonic()
        if pause < 0 and count:
            continue  # skip a missed request
        time.sleep(max(0.0, pause))
        with poolwatch.label(endpoint=visits.endpoint):
            try:
                visits.handler()
            except Exception:
                log.exception("%s", visits.endpoint)
