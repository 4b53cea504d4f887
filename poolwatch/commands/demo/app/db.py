"""The engines: one for the shop's orders, one for the search index."""

import os

from sqlalchemy import create_engine

SCHEMA = "poolwatch_demo"
URL = os.environ["POOLWATCH_DEMO_URL"]

_connect_args = {
    "options": f"-csearch_path={SCHEMA}",
    "application_name": "poolwatch-demo-shop",
}

orders = create_engine(
    URL, pool_size=12, max_overflow=8, pool_timeout=10, connect_args=_connect_args
)
search = create_engine(
    URL, pool_size=4, max_overflow=0, pool_timeout=30, connect_args=_connect_args
)

# The same pool, with autocommit: every statement is a transaction.
reader = orders.execution_options(isolation_level="AUTOCOMMIT")
