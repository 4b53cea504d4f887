"""A child that uses connections of its parent: logged once, and longer than a hold."""

from __future__ import annotations

from helpers import until

APP = """
import os, sys, time, logging
logging.basicConfig(level=logging.WARNING, filename="log")
from sqlalchemy import create_engine, text
import poolwatch

engine = create_engine({url!r}, pool_size=1)
poolwatch.instrument(engine)
with engine.connect() as connection:
    connection.execute(text("SELECT 1"))  # in the parent

def ask():
    with engine.connect() as connection:  # in the child
        connection.execute(text("SELECT 1"))

pid = os.fork()
if pid == 0:
    {first}
    for _ in range(3):
        ask()
    print("ready", flush=True)
    sys.stdin.read()
else:
    os.waitpid(pid, 0)
"""


def test_a_short_hold_is_told(apps, postgres):
    """The hold is over before anybody looks; the finding and the warning are there."""
    apps.start(APP.format(url=postgres.url(), first="pass"))
    line = apps.line("in the child")
    (child,) = until(
        lambda: [p for p in apps.ps()["processes"] if p["findings"]], seconds=20
    )
    assert child["holds"] == []
    (found,) = child["findings"]
    assert found["kind"] == "fork_shared"
    assert [site["line"] for site in found["sites"]] == [line]
    log = apps.home / "log"
    until(lambda: "fork_shared" in log.read_text())
    warnings = [text for text in log.read_text().splitlines() if "fork_shared" in text]
    assert len(warnings) == 1
    assert warnings[0].startswith("WARNING")
    assert f"app.py:{line}" in warnings[0]


def test_a_fresh_pool_in_the_child_is_fine(apps, postgres):
    """As the remedy says; then nothing is found."""
    apps.start(APP.format(url=postgres.url(), first="engine.dispose(close=False)"))
    assert len(apps.ps()["processes"]) >= 1
    assert not any(p["findings"] for p in apps.ps()["processes"])
