"""The application of ``fault_servers.py``: WSGI, ASGI, and a task of Celery."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from helpers import Driver
from sqlalchemy.pool import QueuePool

import poolwatch

logging.basicConfig(format="%(process)d %(name)s: %(message)s")
pool = QueuePool(Driver, pool_size=4, max_overflow=4)
poolwatch.instrument(pool)
with pool.connect():  # before the workers are forked
    pass


def work() -> bytes:
    with pool.connect(), pool.connect():
        time.sleep(0.002)
    return str(os.getpid()).encode()


def app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [work()]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = work()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


if "FAULT_HOME" in os.environ:
    from celery import Celery

    home = Path(os.environ["FAULT_HOME"])
    tasks = Celery("fault_app")
    tasks.conf.broker_url = "filesystem://"
    tasks.conf.broker_transport_options = {
        "data_folder_in": str(home / "queue"),
        "data_folder_out": str(home / "queue"),
        "control_folder": str(home / "control"),
    }

    @tasks.task
    def task(number: int) -> None:
        (home / f"done-{number}-{work().decode()}").touch()
