"""What is found when its test is over: told for that test, never for the running one.

It waits until the running test has been reported. A worker of xdist cannot report for
a test that is over: there it travels to the controller.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import pytest

Told = dict[str, Any]
"""``nodeid``, ``location``, ``text`` and ``entries``: it travels as JSON."""


class Late:
    """A queue of such finds, in one process."""

    def __init__(self, config: pytest.Config, *, error: bool) -> None:
        self._config = config
        self._error = error
        self._seen: set[tuple[str, ...]] = set()
        self.waiting: list[Told] = []

    def add(self, finds: Iterable[Told]) -> None:
        """Queue them. Each worker imports a file and finds the same in it: once."""
        for told in finds:
            sites = [str(each["site"]) for each in told["entries"]]
            key = (told["nodeid"], *sites)
            if all(each["test"] is None for each in told["entries"]):
                if key in self._seen:
                    continue
                self._seen.add(key)
            self.waiting.append(told)

    def tell(self) -> list[Any]:
        """Report them; returns the entries of those that were warnings.

        Call it where pytest has set the filters for warnings.
        """
        waiting, self.waiting = self.waiting, []
        warned: list[Any] = []
        for told in waiting:
            if self._error:
                self._fail(told)
            elif self._warn(told):
                warned += told["entries"]
        return warned

    def _warn(self, told: Told) -> bool:
        """As if the test itself had warned; returns whether the filters let it pass."""
        from poolwatch.testing.leak import PoolLeakWarning

        file, line, _ = told["location"]
        site = told["entries"][0]["site"]
        try:
            with warnings.catch_warnings(record=True) as log:
                warnings.warn_explicit(
                    PoolLeakWarning(told["text"]),
                    PoolLeakWarning,
                    filename=str(site["file"] if site else file),
                    lineno=site["line"] if site else (line or 0) + 1,
                )
        except PoolLeakWarning:
            self._fail(told)
            return False
        for message in log or ():
            self._config.hook.pytest_warning_recorded.call_historic(
                kwargs={
                    "warning_message": message,
                    "nodeid": told["nodeid"],
                    "when": "runtest",
                    "location": None,
                }
            )
        return bool(log)

    def _fail(self, told: Told) -> None:
        for each in told["entries"]:
            each["severity"] = "error"
        report: Any = pytest.TestReport(
            nodeid=told["nodeid"],
            location=tuple(told["location"]),
            keywords={},
            outcome="failed",
            longrepr=told["text"],
            when="teardown",
        )
        report.pool_leaks = told["entries"]
        self._config.hook.pytest_runtest_logreport(report=report)
