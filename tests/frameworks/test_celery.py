"""A Celery worker: two forked children, their tasks, and what these leave behind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import until
from serving import APPS, place, places, seen

pytestmark = [pytest.mark.slow, pytest.mark.processes]

FILE = "jobs.py"
WORKER = ("celery", "-A", "jobs", "worker", "--concurrency", "2", "-l", "warning")
POOLS = ["prefork", "threads", "solo"]


@pytest.fixture
def jobs(start, postgres, tmp_path, request):
    """A worker with an empty queue, and how to send it tasks."""
    (tmp_path / "queue").mkdir()
    (tmp_path / "control").mkdir()
    home = {"SHOP_HOME": str(tmp_path)}
    start(*WORKER, "--pool", getattr(request, "param", "prefork"), **home)

    def send(*names):
        calls = "; ".join(f"jobs.{name}.delay()" for name in names)
        subprocess.run(
            [sys.executable, "-c", f"import jobs; {calls}"],
            cwd=APPS,
            check=True,
            env={
                **os.environ,
                **home,
                "SHOP_DATABASE": postgres.url(),
                "POOLWATCH_DISABLE": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )

    return send


def test_each_child_is_seen_with_its_task(jobs, tmp_path):
    """The hold of each is its own, with the line and the name of the task."""
    jobs("report", "report")
    until(lambda: len(list(tmp_path.glob("reporting-*"))) == 2)
    children = {int(p.name.partition("-")[2]) for p in tmp_path.glob("reporting-*")}
    processes = [process for process in seen() if process["holds"]]
    assert {process["pid"] for process in processes} == children
    holds = [hold for process in processes for hold in process["holds"]]
    assert places([hold["site"] for hold in holds]) == {place(FILE, "report", "report")}
    assert [hold["labels"] for hold in holds] == [{"task": "jobs.report"}] * 2
    kinds = {f["kind"] for process in seen() for f in process["findings"]}
    assert not {kind for kind in kinds if kind.startswith(("leaked", "fork"))}
    (tmp_path / "go").touch()
    until(lambda: len(list(tmp_path.glob("done-*"))) == 2)
    until(lambda: not any(p["holds"] or p["findings"] for p in seen()))


@pytest.mark.parametrize("jobs", POOLS, indirect=True)
def test_a_task_that_leaks(jobs):
    """The task is over; its child or thread lives on and waits for the next one."""
    jobs("leak")

    def leaks():
        found = [f for process in seen() for f in process["findings"]]
        return [f for f in found if f["kind"].startswith("leaked.")]

    (found,) = until(leaks)
    assert places(found["sites"]) == {place(FILE, "leak", "leak")}
    (hold,) = [hold for process in seen() for hold in process["holds"]]
    assert hold["labels"] == {"task": "jobs.leak"}
