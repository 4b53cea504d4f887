"""A Celery worker: an engine made with the module, fresh pools in each child."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery, Task
from celery.signals import worker_process_init
from sqlalchemy import create_engine, text

import poolwatch

home = Path(os.environ["SHOP_HOME"])
engine = create_engine(os.environ["SHOP_DATABASE"])
poolwatch.instrument(engine)


class Labelled(Task):
    def __call__(self, *args, **kwargs):
        with poolwatch.label(task=self.name):
            return super().__call__(*args, **kwargs)


@worker_process_init.connect
def fresh_pool(**_):
    engine.dispose(close=False)


app = Celery("jobs", task_cls=Labelled)

app.conf.broker_url = "filesystem://"
app.conf.broker_transport_options = {
    "data_folder_in": str(home / "queue"),
    "data_folder_out": str(home / "queue"),
    "control_folder": str(home / "control"),
}
with engine.connect() as connection:  # in the parent
    connection.execute(text("SELECT 1"))

kept = []


@app.task
def report():
    with engine.connect() as connection:  # report
        connection.execute(text("SELECT 1"))
        (home / f"reporting-{os.getpid()}").touch()
        while not (home / "go").exists():
            time.sleep(0.05)
    (home / f"done-{os.getpid()}").touch()


@app.task
def leak():
    kept.append(engine.connect())  # leak


poolwatch.instrument(engine, long_after=1)  # so long the tests do wait
