"""Collects the leaks of one run and passes them to reports, summary and JSON.

A leak of the running test is attached to the report of its teardown, which also carries
it to xdist's controller. Other leaks are reported after the running test. The hooks for
reports are registered with the first leak, because most runs have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from poolwatch.testing.owners import Owner

if TYPE_CHECKING:
    from poolwatch.testing.baseline import Baseline
    from poolwatch.testing.late_reports import LateReport, LateReports
    from poolwatch.testing.leak import Leak

_WORKER_KEY = "pool_leaks"
"""Key of the leaks in the output of an xdist worker."""


class Results:
    """The leaks of one run, in all its processes."""

    def __init__(
        self, config: pytest.Config, baseline: Baseline | None, *, error: bool
    ) -> None:
        self._config = config
        self._baseline = baseline
        self._error = error
        self._entries: list[dict[str, Any]] = []
        self._entries_by_test: dict[str, list[dict[str, Any]]] = {}
        """By node id: the entries for the report of its teardown."""
        self._unjudged: dict[str, str] = {}
        self._late: LateReports | None = None
        """Created for the first late report."""
        self._notes = [] if baseline is None else baseline.notes
        """Further lines for the summary."""
        self._is_listening = False
        self.runs_tests = False
        """Whether tests run in this process. They do not in xdist's controller, which
        sends the late reports of its workers at the end."""

    def listen(self) -> None:
        """Register the hooks for reports."""
        if not self._is_listening:
            self._is_listening = True
            self._config.pluginmanager.register(self)

    def new(self, leaks: list[Leak]) -> list[Leak]:
        """Return the leaks that are not in the baseline."""
        return leaks if self._baseline is None else self._baseline.new(leaks)

    def add_for_running_test(
        self, item: pytest.Item, owner: Owner, leaks: Sequence[Leak]
    ) -> None:
        """Add the leaks of the running test."""
        self.listen()
        self._entries_by_test[item.nodeid] = self._entries_of(owner, leaks)
        item.user_properties.append(("pool_leaks", len(leaks)))  # for JUnit

    def add_for_other_owner(
        self, owner: Owner, leaks: Sequence[Leak], text: str
    ) -> None:
        """Add the leaks of another owner, described by ``text``."""
        self.listen()
        report: LateReport = {
            "nodeid": owner.reported_node_id,
            "location": owner.location,
            "text": text,
            "entries": self._entries_of(owner, leaks),
        }
        self._add_late([report])

    def _add_late(self, reports: list[LateReport]) -> None:
        if self._late is None:
            from poolwatch.testing.late_reports import LateReports

            self._late = LateReports(self._config, error=self._error)
        self._late.add(reports)

    def _send_late(self) -> None:
        if self._late is not None:
            self._entries += self._late.send()

    def _entries_of(self, owner: Owner, leaks: Sequence[Leak]) -> list[dict[str, Any]]:
        from poolwatch.testing import summary  # loaded for the first leak

        return [summary.entry(owner, leak, self._error) for leak in leaks]

    # -- reports, after the first leak -------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Attach entries to a report, and collect the entries of all reports."""
        if report.when == "teardown" and report.nodeid in self._entries_by_test:
            report.pool_leaks = self._entries_by_test.pop(report.nodeid)
        for entry in getattr(report, "pool_leaks", ()):
            if not report.failed:  # rerun, or expected to fail
                entry["severity"] = "warning"
            self._entries.append(entry)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        """Send the late reports, now that the running test has been reported."""
        if self.runs_tests and self._worker_output is None:
            self._send_late()

    # -- the end -----------------------------------------------------------------------

    @property
    def _worker_output(self) -> dict[str, Any] | None:
        """The dict that an xdist worker sends to its controller; None elsewhere."""
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        return output

    def finish(self, session: pytest.Session, unjudged: dict[str, str]) -> bool:
        """Report the remaining leaks, or send them to the controller.

        Args:
            session: pytest's session, at its end.
            unjudged: name and kind of the pools that could not be judged.

        Returns:
            Whether a leak is an error.
        """
        self._unjudged |= unjudged
        output = self._worker_output
        if output is not None:
            late = self._late.waiting if self._late is not None else []
            sent = {"late": late, "unjudged": self._unjudged}
            if self._baseline is not None:
                sent["baseline"] = self._baseline.for_controller()
            output[_WORKER_KEY] = sent
            return False
        self._send_late()
        if self._baseline is not None:
            self._baseline.finish(session)
        return any(entry["severity"] == "error" for entry in self._entries)

    def receive(self, node: Any) -> None:
        """In xdist's controller: add the leaks that a worker sent at its end."""
        sent = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
        if self._baseline is not None:
            self._baseline.receive(sent and sent["baseline"])
        if sent is not None:
            self._unjudged |= sent["unjudged"]
            self._add_late(sent["late"])

    def write_json(self, session: pytest.Session) -> None:
        """Write the file of ``--pool-leaks-json``, if set; also of a run that ends
        early.
        """
        option = self._config.getoption("--pool-leaks-json")
        ini = self._config.getini("pool_leaks_json")
        if self._worker_output is not None or not (option or ini):
            return
        from poolwatch.testing import summary

        directory = (
            self._config.invocation_params.dir if option else self._config.rootpath
        )
        path = directory / (option or ini)
        try:
            summary.write_json(path, self._error, self._entries, self._unjudged)
        except OSError as error:
            self._notes.append(f"{option or ini} cannot be written: {error.strerror}")
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def write_summary(self, terminal: Any) -> None:
        """Write the section about leaks, and the annotations for GitHub."""
        if self._entries or self._unjudged or self._notes:
            from poolwatch.testing import summary

            summary.write(
                terminal, self._config, self._entries, self._unjudged, self._notes
            )
