"""A run of tests can be looked at from outside, like any process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.timeout(150)]

WAITS = """
    import os, subprocess, sys, threading, time
    import pytest
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import QueuePool
    engine = create_engine("sqlite:///test.db", poolclass=QueuePool)

    @pytest.fixture(scope="module")
    def keeper():
        with engine.connect() as connection:
            yield connection

    def test_quick():
        engine.connect().close()

    def test_lasts(keeper):
        with engine.connect():
            open(f"begun-{os.getpid()}", "w").close()
            until = time.monotonic() + 60
            while not os.path.exists("go on") and time.monotonic() < until:
                time.sleep(0.05)
        assert [t.name for t in threading.enumerate() if t.name != "poolwatch"]
"""


OPEN = """
    import os, time

    def sockets(count=1, directory=os.environ["POOLWATCH_DIR"]):
        until = time.monotonic() + 40
        while time.monotonic() < until:
            if os.path.isdir(directory):
                found = [n for n in os.listdir(directory) if n.endswith(".sock")]
                if len(found) == count:
                    return found
            time.sleep(0.05)
        raise AssertionError("no such sockets")
"""


@pytest.fixture
def opening(suites):
    suites.write("opening", OPEN, plain=True)
    return suites


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.1)
    return found


def ps(home, *args):
    ran = subprocess.run(
        [sys.executable, "-m", "poolwatch", "ps", *args],
        cwd=home, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return ran.stdout if ran.returncode == 0 else None


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["", "xdist"])
def test_a_test_that_lasts_is_seen_with_its_name(suites, workers):
    suites.write("test_it", WAITS, plain=True)
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", *workers]
    process = subprocess.Popen(command, cwd=suites.home, stdout=subprocess.PIPE)
    try:
        wait_for(lambda: list(suites.home.glob("begun-*")))
        text = wait_for(lambda: ps(suites.home))
        (found,) = json.loads(ps(suites.home, "--json"))["processes"]
    finally:
        (suites.home / "go on").touch()
        said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, said
    (begun,) = suites.home.glob("begun-*")
    assert found["pid"] == int(begun.name.removeprefix("begun-"))
    assert found["program"] == "pytest"
    labels = [hold["labels"] for hold in found["holds"]]
    assert labels == [
        {"fixture": "fixture 'keeper' (module scope, test_it.py)"},
        {"test": "test_it.py::test_lasts"},
    ]
    assert "running test_it.py::test_lasts" in text
    assert not list(Path(os.environ["POOLWATCH_DIR"]).iterdir())


def test_forks_of_a_test_are_not_warned_about(opening):
    """Python 3.12 warns about forks of processes with several threads."""
    opening.write(
        "test_it",
        """
        import os
        from opening import sockets

        def test_forks():
            with engine.connect(): pass
            sockets()
            for _ in range(3):
                pid = os.fork()
                if not pid:
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0

        def test_children_open_their_own(tmp_path):
            pid = os.fork()
            if not pid:
                with engine.connect(): pass
                os._exit(0 if sockets(2) else 7)
            assert os.waitpid(pid, 0)[1] == 0
        """,
    )
    ran = opening.run("-W", "error::DeprecationWarning:test_it")
    assert ran.result.ret == 0, ran.text


def test_an_application_that_instruments_itself_in_a_test(opening):
    """Its agent is the one that logs; what was open for viewers before goes on."""
    opening.write(
        "test_it",
        """
        import os, poolwatch
        from opening import sockets
        from poolwatch.agent.instrument import agent

        def test_it(caplog):
            with engine.connect():
                names = sockets()
            assert not agent.listens
            poolwatch.instrument(engine)
            assert agent.listens
            with engine.connect(): pass
            assert sockets() == names
            assert not caplog.records
        """,
    )
    assert opening.run().result.ret == 0


def test_a_test_may_move_the_directory(opening):
    opening.write(
        "test_it",
        """
        from opening import sockets

        def test_it(monkeypatch, tmp_path):
            monkeypatch.setenv("POOLWATCH_DIR", str(tmp_path / "own"))
            with engine.connect():
                sockets()
            assert not (tmp_path / "own").exists()
        """,
    )
    assert opening.run().result.ret == 0
