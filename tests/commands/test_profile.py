"""``poolwatch profile``: real processes, and the history that sidecars have kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fix_processes import ROOT
from shop_hour import fill_hour

from poolwatch.commands.main import main
from poolwatch.sidecar.history.store import open_store

IDLE = f"""
import sys, threading, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from sqlalchemy import QueuePool
from helpers import Driver
import poolwatch
pool = QueuePool(Driver, pool_size=8)
poolwatch.instrument(pool, name="orders", server_view=False)

def take():
    return pool.connect()  # site

take().close()
"""
WAITING = """
print("ready", flush=True)
sys.stdin.read()
"""
BUSY = f"""{IDLE}
def export():
    return take()

def cart():
    while True:
        connection = take()
        time.sleep(0.01)
        connection.close()
        time.sleep(0.01)

kept = export()
threading.Thread(target=cart, daemon=True).start()
{WAITING}"""


@pytest.fixture
def app(apps):
    apps.environ["POOLWATCH_NAME"] = "shop"
    return apps.start(BUSY)


@pytest.mark.slow
@pytest.mark.processes
def test_the_callers_of_a_call_site_share_its_time(apps, app):
    """A connection that is out all the time, and short holds of another caller."""
    done = apps.poolwatch("profile", "--seconds", "2", "--dir", str(apps.directory))
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(
        r"poolwatch: connections were held ([0-9.]+)s by \d stacks in 2 s\n",
        done.stderr,
    )
    assert said, done.stderr
    held = {"export": 0, "cart": 0}
    for line in done.stdout.splitlines():
        stack, _, value = line.rpartition(" ")
        assert stack.startswith("shop;pool orders;")
        assert re.search(rf"take \(\S+/app.py:{apps.line('site')}\)$", stack)
        (name,) = [each for each in held if f"{each} (" in stack]
        held[name] += int(value)
    assert 0 < held["cart"] < held["export"]
    assert sum(held.values()) == pytest.approx(float(said[1]) * 1000, abs=51)


@pytest.mark.slow
@pytest.mark.processes
def test_speedscope_by_the_name_of_the_file(apps, app):
    file = apps.home / "holds.json"
    done = apps.poolwatch("profile", "--seconds", "1", "-o", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    document = json.loads(file.read_text("utf-8"))
    (profile,) = document["profiles"]
    frames = document["shared"]["frames"]
    lines = {frames[sample[-1]]["line"] for sample in profile["samples"]}
    assert lines == {apps.line("site")}
    assert profile["endValue"] == pytest.approx(sum(profile["weights"]))


@pytest.mark.slow
@pytest.mark.processes
def test_a_process_that_holds_nothing(apps):
    """An empty profile is one: exit code 0, and a sentence."""
    apps.start(IDLE + WAITING)
    done = apps.poolwatch("profile", "--seconds", "0.1")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "poolwatch: no connection was held in 0.1 s\n"


@pytest.mark.slow
@pytest.mark.processes
def test_no_process(apps):
    done = apps.poolwatch("profile", "-o", str(apps.home / "holds.json"))
    assert done.returncode == 3
    assert "no instrumented process found" in done.stderr


# -- the history ---------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/history.db"
    engine = open_store(url, write=True)
    fill_hour(engine)
    engine.dispose()
    return url


def test_the_history(shop, tmp_path):
    """The sum is that of the minutes; the leak has its stack, from the snapshots."""
    output = tmp_path / "hour.json"
    when = ["--since", "2026-11-30T01:10", "--until", "2026-11-30T01:40"]
    assert main(["profile", "--history", shop, "-o", str(output), *when]) == 0
    document = json.loads(output.read_text("utf-8"))
    (profile,) = document["profiles"]
    engine = open_store(shop, write=False)
    with engine.connect() as connection:
        (minutes,) = connection.exec_driver_sql(
            "SELECT sum(held_s) FROM site_minutes "
            "WHERE minute >= 1796001000 AND minute < 1796002800"
        ).one()
    engine.dispose()
    assert sum(profile["weights"]) == pytest.approx(minutes)
    frames = [each["name"] for each in document["shared"]["frames"]]
    stacks = [[frames[at] for at in sample] for sample in profile["samples"]]
    assert ["shop", "pool checkout", "app", "export_orders", "rows"] in stacks


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--until", "2020-01-01"], 2, "lies before the history"),
        (["--since", "2030-01-01"], 2, "lies after the history"),
        (["--since", "2026-11-30T01:30", "--until", "2026-11-30T01:20"], 2, "--since"),
        (["--seconds", "3"], 2, "--seconds cannot be combined with the history"),
        (["--dir", "/tmp"], 2, "--dir cannot be combined with the history"),
        (["-o", "/"], 2, "cannot write /: it is a directory"),
        (["-o", "/nonexistent/p.json"], 2, "there is no directory /nonexistent"),
        (["-o", "/dev/full"], 2, "cannot write /dev/full: No space left on device"),
    ],
)
def test_bad_input_is_one_sentence(shop, capsys, options, code, sentence):
    assert main(["profile", "--history", shop, *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("poolwatch: ")
    assert sentence in line


def test_a_file_that_may_not_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main(["profile", "-o", str(tmp_path / "p.json")]) == 4
    assert "p.json: permission denied" in capsys.readouterr().err


def test_an_unknown_format(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["profile", "--format", "svg"])
    assert "invalid choice: 'svg'" in capsys.readouterr().err
