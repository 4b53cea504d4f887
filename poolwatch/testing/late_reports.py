"""Reports leaks that are found after their test was reported.

Such a leak is reported for its own test, once the running test has been reported. An
xdist worker cannot report for a test that has ended, so it sends the leak to the
controller.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import pytest

LateReport = dict[str, Any]
"""``nodeid``, ``location``, ``text`` and ``entries``; serializable as JSON."""


class LateReports:
    """The queue of late reports of one process."""

    def __init__(self, config: pytest.Config, *, error: bool) -> None:
        self._config = config
        self._error = error
        self._seen: set[tuple[str, ...]] = set()
        self.waiting: list[LateReport] = []

    def add(self, reports: Iterable[LateReport]) -> None:
        """Queue reports; leaks at import, which every worker finds, only once."""
        for report in reports:
            sites = [str(each["site"]) for each in report["entries"]]
            key = (report["nodeid"], *sites)
            if all(each["test"] is None for each in report["entries"]):
                if key in self._seen:
                    continue
                self._seen.add(key)
            self.waiting.append(report)

    def send(self) -> list[Any]:
        """Send the queued reports; return the entries of those that were warnings.

        Must be called where pytest's warning filters are active.
        """
        waiting, self.waiting = self.waiting, []
        warned: list[Any] = []
        for report in waiting:
            if self._error:
                self._fail(report)
            elif self._warn(report):
                warned += report["entries"]
        return warned

    def _warn(self, report: LateReport) -> bool:
        """Warn on behalf of the test; return whether the filters pass the warning."""
        from poolwatch.testing.leak import PoolLeakWarning

        file, line, _ = report["location"]
        site = report["entries"][0]["site"]
        try:
            with warnings.catch_warnings(record=True) as log:
                warnings.warn_explicit(
                    PoolLeakWarning(report["text"]),
                    PoolLeakWarning,
                    filename=str(site["file"] if site else file),
                    lineno=site["line"] if site else (line or 0) + 1,
                )
        except PoolLeakWarning:
            self._fail(report)
            return False
        for message in log or ():
            self._config.hook.pytest_warning_recorded.call_historic(
                kwargs={
                    "warning_message": message,
                    "nodeid": report["nodeid"],
                    "when": "runtest",
                    "location": None,
                }
            )
        return bool(log)

    def _fail(self, report: LateReport) -> None:
        for each in report["entries"]:
            each["severity"] = "error"
        failure: Any = pytest.TestReport(
            nodeid=report["nodeid"],
            location=tuple(report["location"]),
            keywords={},
            outcome="failed",
            longrepr=report["text"],
            when="teardown",
        )
        failure.pool_leaks = report["entries"]
        self._config.hook.pytest_runtest_logreport(report=failure)
