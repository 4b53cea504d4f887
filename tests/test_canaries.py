"""A secret is searched for in everything that leaves the process.

Statements in every syntax, parameters, passwords, connect arguments and keys of
dictionaries contain it; the application itself prints it nowhere.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import urllib.request
import zlib
from contextlib import closing
from pathlib import Path

import canaries
import pytest
from canaries import CANARY, OTHERS, POSTGRES, found_in
from fix_postgres import free_port
from helpers import LONG_S, until
from otlp_receiver import Receiver

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.commands.main import main
from poolwatch.tui.app import Dashboard
from poolwatch.tui.time.saved import open_saved, save

APP = """
    import json, logging, sys, threading, traceback
    from contextlib import suppress
    import poolwatch
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import QueuePool

    given = json.load(open("given.json"))
    canary = given["canary"]
    sys.stderr = open("log", "w", buffering=1)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    kept = {}

    def use(url, statements, **settings):
        engine = create_engine(
            url, pool_size=len(statements) + 1, max_overflow=0, pool_timeout=0.1,
            poolclass=QueuePool, **settings,
        )
        poolwatch.instrument(engine, name=engine.name, long_after=0.1)
        for number, statement in enumerate(statements):
            connection = engine.connect()
            kept[f"{canary}_{engine.name}_{number}"] = connection
            with suppress(Exception):
                connection.exec_driver_sql(statement)
        connection = kept[canary + engine.name] = engine.connect()
        with suppress(Exception):
            connection.execute(text("select :a, 1/:b"), {"a": canary, "b": canary})
        try:
            engine.connect()
        except Exception:
            traceback.print_exc()

    def work():
        use(given["url"], given["postgres"], connect_args=given["arguments"])
        use("sqlite://", given["others"], connect_args={"check_same_thread": False})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    print("ready", flush=True)
    sys.stdin.read()
"""
SUITE = """
    import pytest
    from canaries import CANARY, OTHERS
    from sqlalchemy.pool import QueuePool

    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=50)
    kept = {}

    @pytest.mark.parametrize("number", range(len(OTHERS)))
    def test_leaks(number):
        connection = kept[f"{CANARY}_{number}"] = engine.connect()
        try:
            connection.exec_driver_sql(OTHERS[number])
        except Exception:
            pass
"""
ENDPOINTS = (
    "/snapshot", "/view", "/view?compact=1", "/frozen", "/servers?sessions=1",
    "/trace?seconds=0.1", f"/{CANARY}",
)  # fmt: skip
COMMANDS = (
    "ps", "ps --json", "ps --sites", "ps --frozen", "check", "check --json",
    "advise --seconds 0.1", "profile --seconds 0.1 -o profile",
)  # fmt: skip
SENT = len(POSTGRES + OTHERS) + 2
OF_HISTORY = (
    "history -v", "history --json", "report -o report", "profile -o past",
    "ps --at -0min --json",
)  # fmt: skip


@pytest.fixture
def app(apps, postgres, monkeypatch):
    """All holds are leaks, the pools are exhausted, the watchdog has told so."""
    given = {
        "canary": CANARY,
        "url": postgres.as_role("postgres", CANARY).url(),
        "postgres": POSTGRES,
        "others": OTHERS,
        "arguments": {"options": f"-c app.token={CANARY}"},
    }
    (apps.home / "given.json").write_text(json.dumps(given))
    monkeypatch.chdir(apps.home)
    return apps.start(APP)


@pytest.fixture
def receiver():
    """Of webhooks and of OpenTelemetry's metrics."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def sidecar(apps, app, postgres, receiver):
    """Where its metrics are, and the URL of its history."""
    metrics, history = f"127.0.0.1:{free_port()}", f"sqlite:///{apps.home}/history"
    dsn = postgres.as_role("postgres", CANARY).dsn
    command = [sys.executable, "-m", "poolwatch", "sidecar", "--every", "0.2"]
    command += ["--metrics", metrics, "--history", history, "--dsn", dsn]
    command += ["--webhook", receiver.url, "--otlp"]
    environ = {**apps.environ, **receiver.environ, "OTEL_METRIC_EXPORT_INTERVAL": "200"}
    with (apps.home / "sidecar").open("w") as said:
        running = subprocess.Popen(command, stderr=said, env=environ)
    yield f"http://{metrics}/metrics", history, running
    running.kill()
    running.wait()


def scraped(url):
    try:
        with urllib.request.urlopen(url, timeout=LONG_S) as answer:
            text = answer.read().decode()
    except OSError:
        return ""
    return text if "sqlite" in text and "postgresql" in text else ""


async def drawn(app):
    """The pictures of all views, and of the details of a hold."""
    async with app.run_test(size=(250, 80)) as pilot:
        for keys in ("1", "enter", "escape 2", "3", "4", "5", "6", "7", "1 t"):
            await pilot.press(*keys.split())
            await pilot.pause()
            yield app.export_screenshot().replace("&#160;", " ")


def of_database(path):
    """The bytes of a history, and its snapshots."""
    with closing(sqlite3.connect(path)) as history:
        kept = history.execute("select document from snapshots").fetchall()
        documents = [zlib.decompress(document).decode() for (document,) in kept]
        return "\n".join([*history.iterdump(), *documents])


async def test_no_secret_leaves(
    apps, app, sidecar, receiver, http_get, socket_dir, capsys
):
    url, history, running = sidecar
    outputs = {}
    log = apps.home / "log"
    until(lambda: "leak" in log.read_text(), what="no leak in the log")
    outputs["metrics"] = until(lambda: scraped(url))
    (path,) = socket_dir.glob("*.sock")
    for target in ENDPOINTS:
        outputs[target] = http_get(path, target)[1].decode()
    for command in COMMANDS:
        main(command.split())
        outputs[command] = "".join(capsys.readouterr())
    moment = save(LiveSource(Client(socket_dir)).snapshot(), apps.home / "moment")
    opened = open_saved(moment)
    async for picture in drawn(Dashboard(opened, saved=opened.incidents)):
        outputs[f"picture {len(outputs)}"] = picture
    until(lambda: receiver.newest and b"leaked" in b"".join(receiver.bodies))
    running.terminate()
    assert running.wait(LONG_S) == 0
    outputs["posts"] = b"".join(receiver.bodies).decode("utf-8", "replace")
    for command in OF_HISTORY:
        main([*command.split(), "--history", history])
        outputs[command] = "".join(capsys.readouterr())
    outputs["rows"] = of_database(apps.home / "history")
    for file in ("log", "moment", "profile", "past", "report", "sidecar", "history"):
        outputs[file] = (apps.home / file).read_bytes().decode("utf-8", "replace")
    for name, text in outputs.items():
        assert found_in(text) == [], name
    assert outputs["ps --json"].count('"statement": "') == SENT


def test_no_secret_is_in_the_report_of_pytest(suites):
    suites.write("test_it", SUITE)
    suites.write("canaries", Path(canaries.__file__).read_text(), plain=True)
    ran = suites.run()
    assert "last statement" in ran.text
    assert found_in(ran.text) == []
    assert found_in((suites.home / "found.json").read_text()) == []
