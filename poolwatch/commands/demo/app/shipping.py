"""Shipping quotes, requested from the carrier's web service."""

import json
import urllib.request

from sqlalchemy import text

from poolwatch.commands.demo.app import carrier, db


def quote(order_id: int) -> float:
    with db.reader.connect() as conn:  # fault: slow-http
        region = conn.execute(
            text("SELECT region FROM orders WHERE id = :id"), {"id": order_id}
        ).scalar_one()
        url = f"{carrier.url()}/quote?region={region}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            price = json.load(answer)["price"]
    return float(price)
