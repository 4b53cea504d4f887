"""Revenue by region, computed once and then served from memory."""

from sqlalchemy import Connection, text

from poolwatch.commands.demo.app import db

_connections: dict[str, Connection] = {}
_revenue: dict[str, int] = {}


def _connection(region: str) -> Connection:
    """Open the region's connection and store it for the next report."""
    conn = db.reader.connect()  # fault: never-closed
    _connections[region] = conn
    return conn


def revenue(region: str) -> int:
    if region not in _revenue:
        _revenue[region] = (
            _connection(region)
            .execute(
                text(
                    "SELECT CAST(sum(amount) AS int) FROM orders WHERE region = :region"
                ),
                {"region": region},
            )
            .scalar_one()
        )
    return _revenue[region]
