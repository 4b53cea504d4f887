"""Processes that give no answer, as findings."""

from __future__ import annotations

import pytest

from poolwatch.diagnosis.silence import CRITICAL_AFTER_S, silent_processes
from poolwatch.model import Unreachable

SINCE = "2026-01-01T12:00:00+00:00"
LAST = "its last answer came 4.0s ago"
STOPPED = "it is stopped (state T) and does not answer"


def lost(why=STOPPED, *, alive=True, silent_s=4.0, **more):
    return Unreachable(7, why, SINCE, alive, silent_s=silent_s, **more)


@pytest.mark.parametrize(
    ("silent_s", "severity"),
    [
        (0.4, "warning"),
        (CRITICAL_AFTER_S - 0.1, "warning"),
        (CRITICAL_AFTER_S, "critical"),
        (None, "critical"),
    ],
)
def test_severity(silent_s, severity):
    (finding,) = silent_processes([lost(silent_s=silent_s)])
    assert (finding.kind, finding.severity) == ("unreachable", severity)


@pytest.mark.parametrize(
    ("process", "text"),
    [
        (
            lost(name="shop"),
            "shop 7 is stopped (state T) and has not answered for 4.0s",
        ),
        (
            lost("it does not answer in time", alive=None, silent_s=None),
            "process 7 does not answer in time",
        ),
        (
            lost("it is alive, its socket file is gone"),
            f"process 7 is alive, its socket file is gone; {LAST}",
        ),
        (
            lost("the document is damaged", host="web-1", silent_s=None),
            "process 7 on web-1 gives no snapshot (the document is damaged)",
        ),
        (lost("it is\x1b[2J odd"), f"process 7 is␛[2J odd; {LAST}"),
    ],
)  # fmt: skip
def test_words(process, text):
    (finding,) = silent_processes([process])
    assert finding.text == text


def test_a_process_that_has_ended_is_no_finding():
    assert silent_processes([lost("it has ended", alive=False)]) == []
