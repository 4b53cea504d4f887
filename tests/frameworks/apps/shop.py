"""A WSGI application that asks the database something while it is being imported."""

from __future__ import annotations

import os

from sqlalchemy import create_engine, text

import poolwatch

engine = create_engine(os.environ["SHOP_DATABASE"], pool_size=1, max_overflow=0)
poolwatch.instrument(engine)

with engine.connect() as connection:
    greeting = connection.scalar(text("SELECT 'hello'"))  # in the master

kept = []


def app(environ, start_response):
    connection = engine.connect()  # in a worker
    pid = connection.scalar(text("SELECT pg_backend_pid()"))
    if environ["PATH_INFO"] == "/keep":
        kept.append(connection)
    else:
        connection.close()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {pid}".encode()]
