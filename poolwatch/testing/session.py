"""pytest's hooks for one run: who works when, and what is said of whom.

A leak that is found at the end of its own test is that test's error, at its teardown.
One that is found later (a fixture's, a thread's, what the collector met three tests on)
is reported for the test that answers for it, never for the one that happens to run. A
worker of xdist can only report on its running test: what it finds later travels to the
controller, and is told there.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from poolwatch.agent import agent, watch_quietly
from poolwatch.importing import when_imported
from poolwatch.leaks.record import Leak, PoolLeakWarning
from poolwatch.leaks.telling import in_words
from poolwatch.testing import summary
from poolwatch.testing.judging import Judge
from poolwatch.testing.limits import NO_LIMITS, Limits, limits_of
from poolwatch.testing.owners import Owner, Owners
from poolwatch.text import plural

_OWNER = pytest.StashKey[Owner]()
_LIMITS = pytest.StashKey[Limits]()
_TOLD = pytest.StashKey[list[dict[str, Any]]]()
_HEADING = "pool leaks"
_IN_WORKER = "pool_leaks"
"""Under this name a worker's findings travel to the controller."""


class PoolLeaks:
    """The plugin object of one run."""

    def __init__(
        self, config: pytest.Config, *, error: bool, grace: float | None
    ) -> None:
        self._config = config
        self._error = error
        self._judge = Judge(
            grace=grace,
            ignore=config.getini("pool_leaks_ignore"),
            root=config.rootpath,
        )
        self._owners = Owners()
        self._fixtures: list[Owner] = []
        self._entries: list[dict[str, Any]] = []
        """What was found in this run, in all its processes."""
        self._unjudged: dict[str, str] = {}
        self._late: list[dict[str, Any]] = []
        """In a worker: what the controller must tell."""
        self._watches_all = False

    def owner_of(self, item: Any) -> Owner | None:
        """The owner that stands for a running test."""
        owner: Owner | None = item.stash.get(_OWNER, None)
        return owner

    # -- begin and end ---------------------------------------------------------------

    def begin(self) -> None:
        """Watch every engine, as soon as there is SQLAlchemy."""
        lines = self._config.getini("filterwarnings")
        # Python hides resource warnings. First in the list: whatever the project says
        # of them comes later and wins.
        lines.insert(0, "always::poolwatch.leaks.record.PoolLeakWarning")
        agent.ledger.observers.append(self._owners)
        self._owners.follow()
        when_imported("sqlalchemy", self._watch)

    def _watch(self) -> None:
        if agent.engines is None or not agent.engines.watches_every:
            watch_quietly()
            self._watches_all = True

    def end(self) -> None:
        """Take everything off."""
        self._owners.unfollow()
        agent.ledger.observers.remove(self._owners)
        if self._watches_all:
            from poolwatch.agent import uninstrument

            uninstrument()

    @property
    def _worker_output(self) -> dict[str, Any] | None:
        """What an xdist worker hands to its controller; None elsewhere."""
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        return output

    # -- who works now -----------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, Any, Any]:
        """What a file does when it is imported belongs to the file."""
        before = self._owners.current
        owner = Owner("collection", collector.nodeid, collector.nodeid)
        self._owners.current = owner
        try:
            return (yield)
        finally:
            self._owners.current = before
            if owner.out or owner.dropped:
                self._fixtures.append(owner)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """From here on the main thread works for this test; a rerun is another one."""
        owner = Owner("test", item.nodeid, item.nodeid, item.location)
        item.stash[_OWNER] = owner
        self._owners.current = owner
        limits = item.stash[_LIMITS] = limits_of(item)
        owner.keeps_peak = limits.watch_peak
        result = yield
        owner.pools = self._narrowed(item)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: Any, request: Any
    ) -> Generator[None, Any, Any]:
        """A fixture of a wider scope answers for what it takes."""
        if fixturedef.scope == "function":
            return (yield)
        owner = _fixture_owner(fixturedef, request)
        self._fixtures.append(owner)
        before = self._owners.current
        # Finalizers run last in, first out: this one when all others are done ...
        fixturedef.addfinalizer(lambda: self._fixture_over(owner, before))
        self._owners.current = owner
        try:
            return (yield)
        finally:
            self._owners.current = before
            # ... and this one before the fixture's own code after its yield.
            fixturedef.addfinalizer(lambda: self._fixture_ends(owner))

    def _fixture_ends(self, owner: Owner) -> None:
        self._returning_to = self._owners.current
        self._owners.current = owner

    def _fixture_over(self, owner: Owner, before: Owner | None) -> None:
        self._owners.current = getattr(self, "_returning_to", before)
        self._tell_later(owner)

    def _narrowed(self, item: pytest.Item) -> frozenset[str] | None:
        """Ids of the pools that the project wants judged; None is all."""
        request = getattr(item, "_request", None)
        defs = _definitions(item, "pool_watch_engines")
        if request is None or len(defs) < 2:
            return None
        engines = request.getfixturevalue("pool_watch_engines")
        if engines is None:
            return None
        if not isinstance(engines, list | tuple | set | frozenset):
            engines = [engines]
        known = agent.engines
        ids = {known.id_of(engine) for engine in engines} if known is not None else ()
        return frozenset(pool for pool in ids if pool is not None)

    # -- judging -----------------------------------------------------------------------

    def pytest_exception_interact(self, node: Any) -> None:
        """A test that fails keeps its variables in its traceback."""
        owner = self.owner_of(node) if isinstance(node, pytest.Item) else None
        if owner is not None:
            owner.failed = True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """When all its fixtures are done, the test is judged."""
        owner = item.stash.get(_OWNER, None)
        if owner is None:  # its setup was another plugin's
            return (yield)
        self._owners.current = owner
        try:
            result = yield
        except BaseException:
            owner.failed = True
            self._own_leaks(item, owner)
            raise
        finally:
            self._owners.current = None
            self._tell_late_finds()
        problem = self._problem(item, owner)
        if problem is not None:
            pytest.fail(problem, pytrace=False)
        return result

    def _own_leaks(self, item: pytest.Item, owner: Owner) -> list[Leak]:
        """What the test itself has leaked; nothing if it has failed already."""
        had_out = bool(owner.out) or bool(owner.dropped)
        leaks = self._judge.leaks(owner) if had_out else []
        owner.over = True
        if owner.peak and self._config.getoption("xmlpath", None):
            item.user_properties.append(("pool_peak", owner.peak))
        if leaks and owner.failed:
            item.add_report_section(
                "teardown",
                _HEADING,
                f"{plural(len(leaks), 'connection')} not returned by this test, which "
                "failed: its traceback keeps the variables alive, so that is not "
                f"counted.\n{in_words(leaks, item.nodeid)}",
            )
            return []
        return leaks

    def _problem(self, item: pytest.Item, owner: Owner) -> str | None:
        """What is wrong with a test, in words; None also if it is only to be warned."""
        leaks = self._own_leaks(item, owner)
        limits = item.stash.get(_LIMITS, NO_LIMITS)
        broken = None if owner.failed else limits.broken(owner)
        if limits.leaks is not None and not owner.failed:
            if len(leaks) < limits.leaks:
                missing = (
                    f"{item.nodeid} leaked {plural(len(leaks), 'connection')}, "
                    f"allow_pool_leaks expects {limits.leaks} ({limits.reason}): "
                    "take the marker away, or lower its n"
                )
                return "\n".join(filter(None, (missing, broken)))
            if len(leaks) == limits.leaks:
                leaks = []
        if not leaks:
            return broken
        text = in_words(leaks, item.nodeid, everything=self._everything)
        self._note(item, owner, leaks)
        if self._error:
            return "\n".join(filter(None, (text, broken)))
        _warn(text, leaks)
        return broken

    @property
    def _everything(self) -> bool:
        return bool(self._config.getoption("verbose") >= 2)

    def _note(self, item: pytest.Item, owner: Owner, leaks: Sequence[Leak]) -> None:
        """For the report, which xdist carries to the controller, and for JUnit."""
        entries = [self._entry(owner, leak) for leak in leaks]
        item.stash[_TOLD] = entries
        item.user_properties.append(("pool_leaks", len(leaks)))

    def _entry(self, owner: Owner, leak: Leak) -> dict[str, Any]:
        return summary.entry(owner, leak, self._error)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, Any]:
        """Give the report what was found."""
        report = yield
        if call.when == "teardown":
            told = item.stash.get(_TOLD, None)
            if told:
                report.pool_leaks = told
                del item.stash[_TOLD]
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Gather, also what comes from workers."""
        self._entries += getattr(report, "pool_leaks", ())

    # -- what is found later -----------------------------------------------------------

    def _tell_late_finds(self) -> None:
        while self._owners.late:
            self._tell_later(self._owners.late.pop())

    def _tell_later(self, owner: Owner) -> None:
        """Judge an owner that is not the running test."""
        if not owner.out and not owner.dropped:
            owner.over = True
            return
        if owner.kind == "collection":
            owner.out.clear()  # a module may keep one for as long as it lives
        leaks = self._judge.leaks(owner)
        if not leaks or owner.failed:
            return
        told = {
            "nodeid": owner.blamed,
            "location": owner.location,
            "text": in_words(leaks, owner.name, everything=self._everything),
            "entries": [self._entry(owner, leak) for leak in leaks],
        }
        if self._worker_output is not None:
            self._late.append(told)
        else:
            self._tell(told)

    def _tell(self, told: dict[str, Any]) -> None:
        """Report for a test that is over."""
        file, line, _ = told["location"]
        if not self._error:
            message = warnings.WarningMessage(
                message=PoolLeakWarning(told["text"]),
                category=PoolLeakWarning,
                filename=str(file),
                lineno=(line or 0) + 1,
            )
            self._entries += told["entries"]
            self._config.hook.pytest_warning_recorded.call_historic(
                kwargs={
                    "warning_message": message,
                    "nodeid": told["nodeid"],
                    "when": "runtest",
                    "location": None,
                }
            )
            return
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

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(
        self, session: pytest.Session
    ) -> Generator[None, Any, Any]:
        """Judge what is left; the exit code is honest about it."""
        self._owners.current = None
        left = [*self._fixtures, *self._owners.again.values()]
        if any(owner.out for owner in left):
            gc.collect()
        for owner in left:
            self._tell_later(owner)
        self._tell_late_finds()
        self._unjudged |= self._owners.unjudged
        output = self._worker_output
        if output is not None:
            output[_IN_WORKER] = {"late": self._late, "unjudged": self._unjudged}
            return (yield)
        if self._error and self._entries and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        result = yield
        summary.write_json(self._config, self._error, self._entries, self._unjudged)
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """In the controller: take in what a worker could not tell."""
        sent = getattr(node, "workeroutput", {}).get(_IN_WORKER)
        if sent is None:
            return
        self._unjudged |= sent["unjudged"]
        for told in sent["late"]:
            self._tell(told)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Our section, and the annotations for GitHub."""
        summary.write(terminalreporter, self._config, self._entries, self._unjudged)


def _definitions(item: pytest.Item, name: str) -> Sequence[Any]:
    """The definitions of a fixture that the test can see, ours the first."""
    fixtures = item.session._fixturemanager  # noqa: SLF001 - pytest has no public way
    return fixtures.getfixturedefs(name, item) or ()


def _fixture_owner(fixturedef: Any, request: Any) -> Owner:
    item = request._pyfuncitem  # noqa: SLF001 - the test that was first to ask for it
    home = getattr(fixturedef, "baseid", "") or ""
    where = f", {home}" if home else ""
    return Owner(
        "fixture",
        f"fixture {fixturedef.argname!r} ({fixturedef.scope} scope{where})",
        item.nodeid,
        item.location,
    )


def _warn(text: str, leaks: Sequence[Leak]) -> None:
    site = leaks[0].site
    warnings.warn_explicit(
        PoolLeakWarning(text),
        PoolLeakWarning,
        filename=site.file if site else "unknown",
        lineno=site.line if site else 0,
    )
