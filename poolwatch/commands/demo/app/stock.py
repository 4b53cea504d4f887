"""Stock: reserving and restocking."""

import logging
import time

from sqlalchemy import text

from poolwatch.commands.demo.app import db

PRINTING_TAKES = 9.0

log = logging.getLogger(__name__)


def reserve(sku: str) -> None:
    with db.orders.begin() as conn:  # fault: idle-in-transaction
        conn.execute(
            text("UPDATE stock SET reserved = reserved + 1 WHERE sku = :sku"),
            {"sku": sku},
        )
        print_pick_list(sku)


def print_pick_list(sku: str) -> None:
    """Print the pick list in the warehouse, and wait for the printer."""
    log.info("pick list for %s", sku)
    time.sleep(PRINTING_TAKES)


def restock(sku: str, pieces: int) -> None:
    with db.orders.begin() as conn:  # fault: blocked
        conn.execute(
            text("UPDATE stock SET on_hand = on_hand + :pieces WHERE sku = :sku"),
            {"sku": sku, "pieces": pieces},
        )
