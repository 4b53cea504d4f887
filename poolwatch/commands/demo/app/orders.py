"""Orders: the shop's most frequent queries."""

from sqlalchemy import Row, text

from poolwatch.commands.demo.app import audit, db


def newest(limit: int = 20) -> list[Row[tuple[int, str]]]:
    with db.orders.connect() as conn:
        return list(
            conn.execute(
                text("SELECT id, sku FROM orders ORDER BY id DESC LIMIT :limit"),
                {"limit": limit},
            )
        )


def find(order_id: int) -> Row[tuple[int, str]] | None:
    with db.orders.connect() as conn:
        return conn.execute(
            text("SELECT id, sku FROM orders WHERE id = :id"), {"id": order_id}
        ).one_or_none()


def rename_region(order_id: int, region: str) -> None:
    with db.orders.begin() as conn:
        conn.execute(
            text("UPDATE orders SET region = :region WHERE id = :id"),
            {"id": order_id, "region": region},
        )


def place(region: str, sku: str, amount: int) -> int:
    """Store an order and its fraud score in one request."""
    with db.orders.begin() as conn:  # fault: nested-outer
        order_id: int = conn.execute(
            text(
                "INSERT INTO orders (region, sku, amount) "
                "VALUES (:region, :sku, :amount) RETURNING id"
            ),
            {"region": region, "sku": sku, "amount": amount},
        ).scalar_one()
        audit.record(order_id)
    return order_id


def highest_id() -> int:
    """Return the number of the last order, for the health check."""
    conn = db.orders.raw_connection()  # fault: dropped
    cursor = conn.cursor()
    cursor.execute("SELECT max(id) FROM orders")
    row = cursor.fetchone()
    return int(row[0]) if row else 0
