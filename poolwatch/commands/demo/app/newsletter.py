"""The newsletter, sent by separate threads."""

import threading

from sqlalchemy import Connection, text

from poolwatch.commands.demo.app import db

_connections: dict[str, Connection] = {}


def start() -> None:
    for number in (1, 2):
        threading.Thread(target=_send, name=f"newsletter-{number}").start()


def _send() -> None:
    conn = db.reader.connect()  # fault: thread-ended
    _connections[threading.current_thread().name] = conn
    for _region in conn.execute(text("SELECT DISTINCT region FROM orders")):
        pass  # the mail goes out here
