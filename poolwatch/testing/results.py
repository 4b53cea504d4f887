"""What a run has found, from when it is found to when it is told.

A find about the running test goes with the report of its teardown, which carries it to
xdist's controller. Any other waits until the running test has been reported. pytest
asks here for each report only once there is a find: most runs have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from poolwatch.testing.owners import Owner

if TYPE_CHECKING:
    from poolwatch.testing.late import Late, Told
    from poolwatch.testing.leak import Leak

_IN_WORKER = "pool_leaks"
"""Under this name a worker's findings travel to the controller."""


class Findings:
    """Of one run, in all its processes."""

    def __init__(self, config: pytest.Config, *, error: bool) -> None:
        self._config = config
        self._error = error
        self._entries: list[dict[str, Any]] = []
        self._of_reports: dict[str, list[dict[str, Any]]] = {}
        """By node id: what the report of its teardown will carry."""
        self._unjudged: dict[str, str] = {}
        self._late: Late | None = None
        """Made for the first find of that kind."""
        self._listens = False
        self.runs_tests = False
        """In a controller they run elsewhere: what comes from there is told last."""

    def listen(self) -> None:
        """See every report from now on."""
        if not self._listens:
            self._listens = True
            self._config.pluginmanager.register(self)

    def of_test(self, item: pytest.Item, owner: Owner, leaks: Sequence[Leak]) -> None:
        """Take in what the running test has leaked."""
        self.listen()
        self._of_reports[item.nodeid] = self._told_as(owner, leaks)
        item.user_properties.append(("pool_leaks", len(leaks)))  # for JUnit

    def of_another(self, owner: Owner, leaks: Sequence[Leak], text: str) -> None:
        """Take in what one leaked that is over; ``text`` tells it."""
        self.listen()
        told: Told = {
            "nodeid": owner.blamed,
            "location": owner.location,
            "text": text,
            "entries": self._told_as(owner, leaks),
        }
        self._add_late([told])

    def _add_late(self, finds: list[Told]) -> None:
        if self._late is None:
            from poolwatch.testing.late import Late

            self._late = Late(self._config, error=self._error)
        self._late.add(finds)

    def _tell_late(self) -> None:
        if self._late is not None:
            self._entries += self._late.tell()

    def _told_as(self, owner: Owner, leaks: Sequence[Leak]) -> list[dict[str, Any]]:
        from poolwatch.testing import summary  # only a leak needs it

        return [summary.entry(owner, leak, self._error) for leak in leaks]

    # -- once there is a find ----------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Give a report what was found, and gather it, also what comes from workers."""
        if report.when == "teardown" and report.nodeid in self._of_reports:
            report.pool_leaks = self._of_reports.pop(report.nodeid)
        for entry in getattr(report, "pool_leaks", ()):
            if not report.failed:  # it is run again, or expected to fail
                entry["severity"] = "warning"
            self._entries.append(entry)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        """The running test has been reported: tell of others."""
        if self.runs_tests and self._worker_output is None:
            self._tell_late()

    # -- the end -----------------------------------------------------------------------

    @property
    def _worker_output(self) -> dict[str, Any] | None:
        """What an xdist worker hands to its controller; None elsewhere."""
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        return output

    def conclude(self, unjudged: dict[str, str]) -> bool:
        """Tell the rest, or hand it to the controller; returns whether a leak failed.

        Args:
            unjudged: pools that could not be judged, by name, and their kind.
        """
        self._unjudged |= unjudged
        output = self._worker_output
        if output is not None:
            late = self._late.waiting if self._late is not None else []
            output[_IN_WORKER] = {"late": late, "unjudged": self._unjudged}
            return False
        self._tell_late()
        return any(entry["severity"] == "error" for entry in self._entries)

    def take_in(self, node: Any) -> None:
        """In the controller: what a worker could not tell."""
        sent = getattr(node, "workeroutput", {}).get(_IN_WORKER)
        if sent is not None:
            self._unjudged |= sent["unjudged"]
            self._add_late(sent["late"])

    def write_json(self) -> None:
        """Write ``--pool-leaks-json``, if it was asked for."""
        given = self._config.getoption("--pool-leaks-json")
        ini = self._config.getini("pool_leaks_json")
        if self._worker_output is not None or not (given or ini):
            return
        from poolwatch.testing import summary

        home = self._config.invocation_params.dir if given else self._config.rootpath
        path = home / (given or ini)
        summary.write_json(path, self._error, self._entries, self._unjudged)

    def write_summary(self, terminal: Any) -> None:
        """Write our section, and the annotations for GitHub."""
        if self._entries or self._unjudged:
            from poolwatch.testing import summary

            summary.write(terminal, self._config, self._entries, self._unjudged)
