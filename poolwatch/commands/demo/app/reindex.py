"""The index of all orders, rebuilt by one process at a time."""

from sqlalchemy import text

from poolwatch.commands.demo.app import db


def rebuild() -> None:
    """Rebuild the index; the lock lets a second run wait for the first."""
    with db.orders.connect() as conn:  # fault: lock-returned
        conn.execute(text("SELECT pg_advisory_lock(hashtext('reindex'))"))
        conn.execute(text("SELECT refresh_index(0)"))
        conn.commit()  # ends the transaction, but not the lock
