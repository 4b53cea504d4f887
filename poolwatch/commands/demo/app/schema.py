"""The shop's tables, two slow functions, and sample rows."""

import random

from sqlalchemy import text

from poolwatch.commands.demo.app import db

DOCUMENTS = 1000
ORDERS = 200
REGIONS = ("north", "south")
SKUS = ("LAMP-01", "CHAIR-7")

_TABLES = f"""
DROP SCHEMA IF EXISTS {db.SCHEMA} CASCADE;
CREATE SCHEMA {db.SCHEMA};
COMMENT ON SCHEMA {db.SCHEMA} IS 'made by poolwatch demo';
CREATE TABLE orders (
    id bigserial PRIMARY KEY,
    region text NOT NULL,
    sku text NOT NULL,
    amount numeric NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE stock (
    sku text PRIMARY KEY,
    on_hand integer NOT NULL,
    reserved integer NOT NULL DEFAULT 0
);
CREATE TABLE audit (
    id bigserial PRIMARY KEY,
    order_id bigint NOT NULL,
    score integer NOT NULL
);
CREATE TABLE documents (id integer PRIMARY KEY, body text NOT NULL);
CREATE TABLE chunks (
    document_id integer NOT NULL,
    position integer NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (document_id, position)
);
-- Two slow functions, standing in for a model and an index.
CREATE FUNCTION fraud_score(order_id bigint) RETURNS integer AS $$
BEGIN PERFORM pg_sleep(1.7); RETURN order_id % 100; END $$ LANGUAGE plpgsql;
CREATE FUNCTION refresh_index(first_document integer) RETURNS integer AS $$
BEGIN PERFORM pg_sleep(0.12); RETURN first_document; END $$ LANGUAGE plpgsql;
"""

_WORDS = """
pool connection order invoice parcel lamp chair table customer address carrier refund
return label warehouse shelf scanner receipt contract clause delivery
"""


def create() -> None:
    """Recreate the schema; an earlier run may have left one."""
    with db.orders.begin() as conn:
        conn.execute(text(_TABLES))
        conn.execute(
            text("INSERT INTO stock (sku, on_hand) VALUES (:sku, 500)"),
            [{"sku": sku} for sku in SKUS],
        )
        conn.execute(
            text(
                "INSERT INTO orders (region, sku, amount) "
                "SELECT (CAST(:regions AS text[]))[1 + n % 2], "
                "(CAST(:skus AS text[]))[1 + n % 2], 10 + n % 90 "
                "FROM generate_series(1, :count) AS n"
            ),
            {"regions": list(REGIONS), "skus": list(SKUS), "count": ORDERS},
        )
        conn.execute(
            text(
                "INSERT INTO documents (id, body) "
                "SELECT * FROM unnest(CAST(:ids AS int[]), CAST(:bodies AS text[]))"
            ),
            {"ids": list(range(DOCUMENTS)), "bodies": _bodies()},
        )


def _bodies() -> list[str]:
    chance, words = random.Random(7), _WORDS.split()
    return [
        " ".join(chance.choices(words, k=chance.randrange(60, 240)))
        for _ in range(DOCUMENTS)
    ]
