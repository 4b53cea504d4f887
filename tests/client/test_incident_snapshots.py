"""What a pool's trouble looked like, asked for when it is long over."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import contextmanager

import pytest

from poolwatch.client.client import Client
from poolwatch.errors import NoProcessError, UnreachableError

EXHAUSTED = """
import sys, threading, time
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool
import poolwatch

engine = create_engine("sqlite:///orders.db", poolclass=QueuePool, pool_size=1,
    max_overflow=0, pool_timeout=300)
poolwatch.instrument(engine, name="orders", long_after=0.2)
other = create_engine("sqlite:///other.db", poolclass=QueuePool)
poolwatch.instrument(other, name="other")
begun, done = threading.Event(), threading.Event()

def export():
    with engine.connect() as connection:  # taken
        connection.execute(text("select 1"))  # used
        begun.set()
        done.wait()  # now

def pay():
    with engine.connect() as connection:  # waits
        connection.execute(text("select 1"))

exporter = threading.Thread(target=export, name="exporter")
exporter.start()
begun.wait()
payer = threading.Thread(target=pay, name="payer")
payer.start()
aside = other.connect()  # aside
until = time.monotonic() + 60
while not poolwatch.snapshot().processes[0].frozen:
    assert time.monotonic() < until, "it was not kept"
    time.sleep(0.01)
if "lasting" not in sys.argv:
    done.set()
    exporter.join()
    payer.join()
else:
    time.sleep(0.3)
print("ready", flush=True)
sys.stdin.read()
done.set()
exporter.join()
payer.join()
aside.close()
"""

CALM = """
import sys
from sqlalchemy import create_engine, text
import poolwatch

engine = create_engine("sqlite://")
poolwatch.instrument(engine, name="calm")
with engine.connect() as connection:
    connection.execute(text("select 1"))
print("ready", flush=True)
sys.stdin.read()
"""


def test_over_but_kept(apps):
    """It was exhausted, nobody looked, and now nothing is held: the picture tells."""
    app = apps.start(EXHAUSTED)
    now = apps.poolwatch("ps", COLUMNS="80")
    assert now.returncode == 0
    assert "incidents: orders exhausted at " in now.stdout
    assert "(poolwatch ps --frozen)" in " ".join(now.stdout.split())
    assert "exporter" not in now.stdout

    kept = apps.poolwatch("ps", "--frozen", COLUMNS="80")
    assert kept.returncode == 0, kept.stderr
    heading = " ".join(kept.stdout.split())
    assert heading.startswith("incident 20")
    assert f" UTC: pool 'orders' of app.py (pid {app.pid}) was exhausted " in heading
    assert f"app.py:{apps.line('taken')}" in kept.stdout
    assert "exporter" in kept.stdout
    assert "payer at" in kept.stdout
    assert f"app.py:{apps.line('waits')}" in kept.stdout
    assert "CRITICAL exhausted" in kept.stdout
    assert f"app.py:{apps.line('aside')}" not in kept.stdout
    assert max(map(len, kept.stdout.splitlines())) <= 80

    verbose = apps.poolwatch("ps", "--frozen", "-v", "--sites").stdout
    for title, marker in (
        ("checked out here", "taken"),
        ("last used here", "used"),
        ("now here", "now"),
    ):
        (line,) = [line for line in verbose.splitlines() if title in line]
        assert line.endswith(f"app.py:{apps.line(marker)} in export")
    assert "proof: held by " in verbose
    assert apps.finish(app) == 0


def test_as_json(apps):
    """The document of each process, the public fields only."""
    app = apps.start(EXHAUSTED)
    document = apps.ps("--frozen")
    assert set(document) == {"schema", "frozen"}
    assert document["schema"] == 1
    (picture,) = document["frozen"]
    assert set(picture) == {"pool", "kind", "at", "process"}
    assert picture["kind"] == "exhausted"
    process = picture["process"]
    (now,) = apps.ps()["processes"]
    assert process["pid"] == app.pid
    assert set(process) == set(now)
    names = {pool["id"]: pool["name"] for pool in process["pools"]}
    assert names[picture["pool"]] == "orders"
    held = [hold for hold in process["holds"] if hold["pool"] == picture["pool"]]
    assert [hold["thread"] for hold in held] == ["exporter"]
    assert "used" not in held[0]
    assert set(process["pools"][0]) == set(now["pools"][0])


def test_sites_and_proof_of_now(apps):
    """A long hold that lasts: its stacks, and what its call site has cost."""
    app = apps.start(EXHAUSTED, "app.py", "lasting")
    text = apps.poolwatch("ps", "-v", "--sites", COLUMNS="80").stdout
    assert " payer at " in text
    assert "proof: " in text
    (line,) = [line for line in text.splitlines() if "now here" in line]
    assert line.endswith(f"app.py:{apps.line('now')} in export")
    assert "call sites of orders, costliest first:" in text
    assert max(map(len, text.splitlines())) <= 80
    assert apps.finish(app) == 0


def test_no_trouble_no_picture(apps):
    apps.start(CALM)
    kept = apps.poolwatch("ps", "--frozen", COLUMNS="200")
    assert (kept.returncode, kept.stderr) == (0, "")
    assert kept.stdout.startswith("no incident snapshot: no pool has been exhausted")
    assert len(kept.stdout.splitlines()) == 1
    assert apps.ps("--frozen") == {"schema": 1, "frozen": []}


def test_wrong_use(apps):
    nobody = apps.poolwatch("ps", "--frozen")
    assert nobody.returncode == 3
    assert "no instrumented process found" in nobody.stderr
    both = apps.poolwatch("ps", "--frozen", "--dsn", "postgresql://nowhere/x")
    assert both.returncode == 2
    assert both.stderr == (
        "poolwatch: --dsn cannot be combined with --frozen, which has no server view\n"
    )


@contextmanager
def answering(directory, status, body):
    """An agent that answers every request like this."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{os.getpid()}-00ff.sock"
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind(str(path))
        ear.listen(8)

        def serve():
            while True:
                try:
                    connection, _ = ear.accept()
                except OSError:
                    return
                with connection:
                    if connection.recv(4096):  # a probe says nothing
                        head = (
                            f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
                        )
                        connection.sendall(head.encode() + body)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        ear.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def test_an_older_agent(apps):
    """It answers 404: no pictures, and a sentence; the others are shown."""
    apps.start(EXHAUSTED)
    with answering(apps.directory, "404 Not Found", b"{}"):
        client = Client(apps.directory)
        pictures, unreachable = client.all_incident_snapshots()
        shown = apps.poolwatch("ps", "--frozen", COLUMNS="200")
        as_json = apps.poolwatch("ps", "--frozen", "--json")
        (old,) = [a for a in client.agents() if a.pid == os.getpid()]
        with pytest.raises(UnreachableError, match="is too old"):
            client.incident_snapshots(old)
    assert [picture.kind for picture in pictures] == ["exhausted"]
    why = "its version of poolwatch is too old to keep incident snapshots"
    assert [(each.pid, each.why) for each in unreachable] == [(os.getpid(), why)]
    sentence = f"pid {os.getpid()} could not be read: {why}"
    assert shown.returncode == as_json.returncode == 0
    assert shown.stdout.endswith(sentence + "\n")
    assert as_json.stderr == f"poolwatch: {sentence}\n"
    assert len(json.loads(as_json.stdout)["frozen"]) == 1


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        ("500 Oh", b"", "it answered 500 Oh"),
        ("200 OK", b"no json", "not a complete JSON document"),
        ("200 OK", b'{"schema": 1}', "no list of frozen"),
        ("200 OK", b'{"schema": 1, "frozen": [{"pool": 1}]}', "is damaged"),
        ("200 OK", b'{"schema": 9, "frozen": []}', "has schema 9"),
    ],
)
def test_answers_that_are_none(socket_dir, status, body, why):
    with answering(socket_dir, status, body):
        pictures, (lost,) = Client(socket_dir).all_incident_snapshots()
    assert pictures == ()
    assert why in lost.why


def test_one_that_hangs_and_nobody(socket_dir):
    with pytest.raises(NoProcessError):
        Client(socket_dir).all_incident_snapshots()
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(socket_dir / "999998-00ff.sock"))
        hung.listen(8)
        pictures, (lost,) = Client(socket_dir, patience_s=0.2).all_incident_snapshots()
    assert pictures == ()
    assert lost.pid == 999998
    assert "does not answer" in lost.why
