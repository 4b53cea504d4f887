"""What the faces say of every state is true; ``states.py`` makes the states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tui import states

pytestmark = [
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.processes,
    pytest.mark.skipif(
        not Path("/proc/self/stat").exists(), reason="the kernel says it in /proc"
    ),
]

HEALTHY = {
    "all is well", "socket removed", "process killed", "role without rights",
}  # fmt: skip
NO_FINDING = {*HEALTHY, "no process", "the only process killed"}
"""States in which ``check`` finds nothing that is wrong."""
SILENT = {
    "process stopped": "is stopped (state T) and has not answered for",
    "process starved": "is alive and has not answered for",
    "socket removed, starved": "is alive, its socket file is gone",
    "the only process stopped": "is stopped (state T) and has not answered for",
}
DOWN = ("database down", "database hung")


@pytest.fixture(scope="module")
def told():
    return {each.state: each for each in states.table()}


def test_healthy_is_said_only_where_everything_has_answered(told):
    said = {name for name, each in told.items() if "healthy" in "".join(each.seen)}
    assert said == HEALTHY


def test_check_finds_something_where_something_is_wrong(told):
    codes = {name: each.code for name, each in told.items()}
    assert {name for name, code in codes.items() if code == 1} == {*told} - NO_FINDING
    assert codes["no process"] == codes["the only process killed"] == 3
    assert {codes[name] for name in HEALTHY} == {0}


@pytest.mark.parametrize("state", SILENT)
def test_a_process_that_does_not_answer(told, state):
    """The same words and age everywhere; its holds have not returned."""
    each, words = told[state], SILENT[state]
    assert f" {words}" in each.text
    assert re.search(r"[■◆] (billing|orders)\.py \d+ is ", each.text)
    assert not any("returned" in row for row in each.rows)
    assert re.search(
        rf"(critical|warning) unreachable: .*{re.escape(words)}", each.check
    )
    assert words in " ".join(each.ps.split())
    (lost,) = each.document["unreachable"]
    assert set(lost) == {"pid", "why", "since", "alive"}
    assert lost["alive"] is True
    if "gone" not in words:  # who comes now cannot know since when
        assert lost["since"] is not None


def test_a_long_silence_is_critical(told):
    for state in ("process stopped", "the only process stopped"):
        assert "■" in told[state].text
        assert "critical unreachable: " in told[state].check


def test_one_silent_process_ages_nobody(told):
    """Two of three answer; what the header says is the age of the oldest of those."""
    for state in ("process stopped", "process starved"):
        ages = re.findall(r"apps 2/3 (\d+\.\d)s", "\n".join(told[state].seen))
        assert ages
        assert min(map(float, ages)) < 2.0
        assert sum(" ago: " in row for row in told[state].rows) >= 2


def test_a_process_that_has_ended_is_no_fault(told):
    each = told["process killed"]
    assert "✓ healthy  1 process has ended; of the others: 2 connections" in each.text
    assert re.search(r"billing\.py \d+ ended at \d\d:\d\d:\d\d", each.text)
    assert "billing" not in each.check
    each = told["the only process killed"]
    assert "LOST" in each.text
    assert re.search(r"orders\.py \d+ ended at \d\d:\d\d:\d\d", each.text)


@pytest.mark.parametrize("state", DOWN)
def test_a_server_that_does_not_answer(told, state):
    """One finding in each process concerned; every face says it once."""
    each = told[state]
    assert re.search(r"db DOWN \d", each.text)
    assert re.search(r"■ PostgreSQL at \S+ does not answer since \S+ \(", each.text)
    assert "2 pools of 2 processes use it" in each.text
    assert "not answered" not in each.text, "the application is not to blame"
    assert each.check.count("critical server_down: ") == 1
    assert each.ps.count("CRITICAL server_down: ") == 1
    found = {
        process["program"]: [
            each for each in process["findings"] if each["kind"] == "server_down"
        ]
        for process in each.document["processes"]
    }
    assert found.pop("search.py") == []
    assert found["orders.py"] == found["billing.py"]
    assert [len(findings) for findings in found.values()] == [1, 1]
    (other,) = [row for row in each.rows if "search.py" in row and "idle" in row]
    assert "ago" not in other


def test_a_server_that_was_restarted(told):
    """Each hold on it is a ghost, those on another server are none."""
    each = told["database restarted"]
    assert "DOWN" not in each.text
    ghosts = {
        process["program"]: [
            hold
            for finding in process["findings"]
            if finding["kind"] == "ghost"
            for hold in finding["holds"]
        ]
        for process in each.document["processes"]
    }
    holds = {
        process["program"]: [hold["id"] for hold in process["holds"]]
        for process in each.document["processes"]
    }
    assert ghosts == {**holds, "search.py": []}
    assert "restarted" in each.check
    marked = [row for row in each.rows if "◌ GHOST" in row]
    for program, is_ghost in {"orders": True, "billing": True, "search": False}.items():
        assert any(f"{program}.py:" in row for row in marked) is is_ghost


def test_the_way_to_the_server(told):
    each = told["network of the DSN gone"]
    assert "the server of the DSN cannot be read" in each.text
    assert "server_down" not in each.check
    assert "PostgreSQL has not answered in time" in each.check
    assert "idle" in told["role without rights"].ps
    assert "no instrumented process found" in told["no process"].text
