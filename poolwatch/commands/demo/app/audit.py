"""The fraud score of every order, stored for the auditors."""

from sqlalchemy import text

from poolwatch.commands.demo.app import db


def record(order_id: int) -> None:
    with db.orders.begin() as conn:  # fault: nested
        conn.execute(
            text("INSERT INTO audit (order_id, score) SELECT :id, fraud_score(:id)"),
            {"id": order_id},
        )
