"""A WSGI application for greenlet workers: requests that last, and one that leaks."""

from __future__ import annotations

import os
import time

from sqlalchemy import create_engine, text

import poolwatch

if os.environ.get("SHOP_PSYCOGREEN"):
    from psycogreen.gevent import patch_psycopg

    patch_psycopg()

engine = create_engine(os.environ["SHOP_DATABASE"])
poolwatch.instrument(engine, long_after=0.5)
kept = []


def app(environ, start_response):
    connection = engine.connect()  # for a request
    connection.execute(text("SELECT 1"))
    if environ["PATH_INFO"] == "/report":
        time.sleep(60)
    if environ["PATH_INFO"] == "/keep":
        kept.append(connection)
    else:
        connection.close()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
