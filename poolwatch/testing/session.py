"""pytest's hooks for one run: they set the current owner, and report the leaks.

A leak that is found at the end of its own test is an error of that test, at its
teardown. A leak that is found later (of a fixture or a thread, or when the garbage
collector runs three tests on) is reported for the test that caused it, never for the
running one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from poolwatch.agent.instrument import agent
from poolwatch.runtime.gc_pause import collect
from poolwatch.testing.instrumentation import Instrumentation
from poolwatch.testing.judge import Judge
from poolwatch.testing.markers import MARKERS
from poolwatch.testing.owners import Owner, Owners
from poolwatch.testing.results import Results
from poolwatch.testing.runner import (
    fails_as_expected,
    overrides_fixture,
    runner_functions,
)
from poolwatch.testing.scopes import WiderFixture
from poolwatch.testing.standstill import Standstills

if TYPE_CHECKING:
    from poolwatch.testing.baseline import Baseline
    from poolwatch.testing.leak import Leak

_HEADING = "pool leaks"


class PoolLeaks:
    """The plugin object of one run."""

    def __init__(
        self,
        config: pytest.Config,
        *,
        error: bool,
        grace: float | None,
        hang: float,
        baseline: Baseline | None,
    ) -> None:
        self._config = config
        self._error = error
        self._ledger = agent.ledger
        self._owners = Owners()
        self._judge = Judge(
            grace=grace, ignore=config.getini("pool_leaks_ignore"), root=config.rootpath
        )
        self._instrumentation = Instrumentation()
        self._standstills = Standstills(
            self._owners, lambda: self._test_owner, after_s=hang
        )
        self._wider_fixtures: list[WiderFixture] = []
        self._import_owners: list[Owner] = []
        self._previous_owners: list[Owner | None] = []
        """The owners to restore after the teardown of each fixture, innermost last."""
        self._results = Results(config, baseline, error=error)
        self._junit = False
        self._test_owner: Owner | None = None
        """The owner for the running test."""
        self._last_parent: Any = None
        """The file or class of the last test."""
        self._selects_pools = False
        """Whether the file or class overrides ``pool_watch_engines``."""
        self._needs_preparation = False
        """Whether its tests need preparation, because of that or a marker."""
        self._function_scoped: set[Any] = set()
        """The known fixtures of function scope."""
        self._preparation: Callable[[], object] | None = None
        """The preparation of the running test. It runs after the setup: earlier, other
        plugins might not be set up yet."""

    def owner_of(self, item: Any) -> Owner | None:
        """Return the owner of a test, if that is running; else None."""
        owner = self._test_owner
        return owner if owner is not None and owner.node is item else None

    # -- begin and end ---------------------------------------------------------------

    def begin(self) -> None:
        """Instrument every pool, and start to assign checkouts to owners."""
        if not self._error:
            lines = self._config.getini("filterwarnings")
            # Python hides resource warnings. Inserted first, so that the filters of the
            # project come later and win.
            lines.insert(0, "always::poolwatch.testing.leak.PoolLeakWarning")
        self._junit = bool(getattr(self._config.known_args_namespace, "xmlpath", None))
        for function in runner_functions():
            agent.end_stacks_at(function)
        agent.ledger.observers.append(self._owners)
        self._owners.start_tracking()
        self._config.pluginmanager.register(self._standstills)
        self._instrumentation.begin()

    def end(self) -> None:
        """Uninstrument, and stop recording."""
        self._config.pluginmanager.unregister(self._standstills)
        self._standstills.end()
        self._owners.stop_tracking()
        agent.ledger.observers.remove(self._owners)
        self._instrumentation.end()

    # -- the current owner -------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, Any, Any]:
        """Charge connections checked out at the import of a file to the file."""
        before = self._owners.current
        owner = self._owners.current = Owner("collection", collector)
        try:
            return (yield)
        finally:
            self._owners.current = before
            if owner.open_holds or owner.dropped:
                self._import_owners.append(owner)

    # These hooks run at least once per test. So there are few of them, plain functions
    # where possible, and work that only some tests need is done only for those.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Make this test the owner of the main thread; a rerun gets a new owner."""
        owner = self._test_owner = self._owners.current = Owner("test", item)
        self._preparation = None
        if self._ledger.changes != self._instrumentation.changes_seen:
            self._instrumentation.restore()
        if item.parent is not self._last_parent:
            self._enter(item)
        if self._needs_preparation or item.own_markers:
            self._prepare(item, owner)

    def _enter(self, item: pytest.Item) -> None:
        """Note the properties that all tests of a file or class share."""
        self._results.runs_tests = True
        self._last_parent = item.parent
        self._selects_pools = overrides_fixture(item, "pool_watch_engines")
        parents = item.listchain()[:-1]
        marks = (mark for parent in parents for mark in parent.own_markers)
        marked = any(mark.name in MARKERS for mark in marks)
        self._needs_preparation = self._selects_pools or marked

    def _prepare(self, item: pytest.Item, owner: Owner) -> None:
        """Read the markers of a test, and set its preparation."""
        if self._selects_pools:
            self._preparation = partial(self._select_pools, item, owner)
        if not any(mark.name in MARKERS for mark in item.iter_markers()):
            return
        from poolwatch.testing.limits import limits_of

        try:
            owner.limits = limits = limits_of(item)
            owner.needs_judging = True
        except pytest.fail.Exception as error:
            self._preparation = partial(_raise, error)
        else:
            owner.records_peak = limits.needs_stacks

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Run the preparation of a test, if it has one; an exception fails the test."""
        owner = self.owner_of(item)
        if owner is None:
            return
        owner.called = monotonic()
        prepare, self._preparation = self._preparation, None
        if prepare is not None:
            prepare()

    def _select_pools(self, item: pytest.Item, owner: Owner) -> None:
        """Judge only the pools that ``pool_watch_engines`` selects."""
        owner.pools = self._selected_pools(item)
        for each in self._wider_fixtures:
            if each.owner.reported_node_id == item.nodeid:
                each.owner.pools = owner.pools

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> None:
        """Make a wider fixture the owner of the checkouts of its setup."""
        if fixturedef in self._function_scoped:
            return
        if fixturedef.scope == "function":
            self._function_scoped.add(fixturedef)
            return
        self._finish_setups()
        fixture = WiderFixture(fixturedef, request)
        self._wider_fixtures.append(fixture)
        # Finalizers run last in, first out: this one runs after all others ...
        fixturedef.addfinalizer(lambda: self._after_fixture_teardown(fixture))
        self._owners.in_setup.append(fixture)

    def _finish_setups(self) -> None:
        """Handle the fixtures whose setup has ended."""
        in_setup = self._owners.in_setup
        while in_setup and in_setup[-1].is_set_up:
            fixture = in_setup.pop()
            fixture.owner.failed = fixture.has_failed()
            # ... and this one before the fixture's own teardown.
            fixture.definition.addfinalizer(
                partial(self._before_fixture_teardown, fixture)
            )

    def _finish_all_setups(self) -> None:
        """Handle all fixtures; those still in setup failed before their setup began."""
        while self._owners.in_setup:
            self._finish_setups()
            del self._owners.in_setup[-1:]

    def _before_fixture_teardown(self, fixture: WiderFixture) -> None:
        self._previous_owners.append(self._owners.current)
        self._owners.current = fixture.owner

    def _after_fixture_teardown(self, fixture: WiderFixture) -> None:
        self._owners.current = (
            self._previous_owners.pop() if self._previous_owners else None
        )
        self._wider_fixtures.remove(fixture)
        for owner in (fixture.owner, *fixture.postponed_owners):
            self._judge_late(owner)

    def _postpone(self, owner: Owner) -> None:
        """Postpone holds that a fixture not yet torn down may still close."""
        for fixture in reversed(self._wider_fixtures):
            if owner.open_holds:
                fixture.postpone(owner, self._owners)

    def _selected_pools(self, item: pytest.Item) -> frozenset[str] | None:
        """Ids of the pools that ``pool_watch_engines`` selects; None for all."""
        request = getattr(item, "_request", None)
        if request is None:
            return None
        engines = request.getfixturevalue("pool_watch_engines")
        if engines is None:
            return None
        if not isinstance(engines, list | tuple | set | frozenset):
            engines = [engines]
        known = agent.pools
        ids = {known.id_of(engine) for engine in engines} if known is not None else ()
        return frozenset(pool for pool in ids if pool is not None)

    # -- judging -----------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Judge the test after the teardown of all its fixtures."""
        owner, owners = self._test_owner, self._owners
        if owners.in_setup:
            self._finish_all_setups()
        if owner is None or owner.node is not item:  # another plugin did the setup
            return (yield)
        owners.current = owner
        if self._ledger.changes != self._instrumentation.changes_seen:
            self._instrumentation.restore()
        try:
            result = yield
        except BaseException:
            owner.failed = True
            self._own_leaks(item, owner)
            raise
        finally:
            owners.current = self._test_owner = None
            if owners.collected_after_judging:
                self._judge_late_collected()
        owner.judged = True
        if owner.open_holds or owner.needs_judging or self._junit:
            problem = self._problem(item, owner)
            if problem is not None:
                pytest.fail(problem, pytrace=False)
        return result

    def _own_leaks(self, item: pytest.Item, owner: Owner) -> list[Leak]:
        """Return the leaks of a test; if it has failed, only add a report section."""
        used = bool(owner.open_holds) or bool(owner.dropped)
        leaks = self._judge.leaks(owner, self._postpone) if used else []
        owner.failed = owner.failed or fails_as_expected()
        owner.judged = True
        if owner.peak and self._junit:
            item.user_properties.append(("pool_peak", owner.peak))
        if leaks and owner.failed:
            from poolwatch.text.format import plural

            item.add_report_section(
                "teardown",
                _HEADING,
                f"{plural(len(leaks), 'connection')} not returned by this test, which "
                "failed: its traceback keeps the variables alive, so it is not "
                f"counted.\n{describe(leaks, item.nodeid)}",
            )
            return []
        return leaks

    def _problem(self, item: pytest.Item, owner: Owner) -> str | None:
        """Return the text to fail a test with, or None; warn of leaks in warn mode."""
        leaks = self._own_leaks(item, owner)
        limits = owner.limits
        if limits is None and not leaks:
            return None
        violation = None if owner.failed or limits is None else limits.violation(owner)
        if limits is not None and limits.leaks is not None and not owner.failed:
            if len(leaks) < limits.leaks:
                from poolwatch.text.format import plural

                missing = (
                    f"{item.nodeid} leaked {plural(len(leaks), 'connection')}, "
                    f"allow_pool_leaks expects {limits.leaks} ({limits.reason}): "
                    "remove the marker, or lower its n"
                )
                return "\n".join(filter(None, (missing, violation)))
            if len(leaks) == limits.leaks:
                leaks = []
        leaks = self._results.new(leaks)
        if not leaks:
            return violation
        text = describe(leaks, item.nodeid, verbose=self._verbose)
        self._results.add_for_running_test(item, owner, leaks)
        if self._error:
            return "\n".join(filter(None, (text, violation)))
        _warn(text, leaks)
        return violation

    @property
    def _verbose(self) -> bool:
        return bool(self._config.getoption("verbose") >= 2)

    def pytest_exception_interact(self, node: Any) -> None:
        """Note that a test fails: its traceback keeps its variables alive.

        Not called for a test that is expected to fail: see _fails_as_expected.
        """
        owner = self.owner_of(node)
        if owner is not None:
            owner.failed = True

    # -- leaks found after the test ----------------------------------------------------

    def _judge_late_collected(self) -> None:
        while self._owners.collected_after_judging:
            self._judge_late(self._owners.collected_after_judging.pop())

    def _judge_late(self, owner: Owner) -> None:
        """Judge an owner that is not the running test."""
        if not owner.open_holds and not owner.dropped:
            owner.judged = True
            return
        if owner.kind == "collection":
            owner.open_holds.clear()  # a module may hold connections for good
        leaks = self._judge.leaks(owner, self._postpone)
        if owner.open_holds:  # checked out meanwhile
            self._owners.checked_out_after_judging[id(owner)] = owner
        leaks = [] if owner.failed else self._results.new(leaks)
        if not leaks:
            return
        text = describe(leaks, owner.name, verbose=self._verbose)
        self._results.add_for_other_owner(owner, leaks, text)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(
        self, session: pytest.Session
    ) -> Generator[None, Any, Any]:
        """Judge the remaining owners; a leak that is an error sets the exit code.

        Runs as the innermost wrapper, where the warning filters are active.
        """
        self._finish_all_setups()
        self._owners.current = None
        remaining = [
            *self._import_owners,
            *list(self._owners.checked_out_after_judging.values()),
        ]
        if any(owner.open_holds for owner in remaining):
            collect()
        for owner in remaining:
            self._judge_late(owner)
        self._judge_late_collected()
        failed = self._results.finish(session, self._owners.unjudged)
        if failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        result = yield
        self._results.write_json(session)
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self) -> None:
        """In xdist's controller: listen, since any report may carry leaks."""
        self._results.listen()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """In xdist's controller: add the leaks that a worker could not report."""
        self._results.receive(node)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write the section about leaks, and the annotations for GitHub."""
        self._results.write_summary(terminalreporter)


def _raise(error: BaseException) -> None:
    raise error


def describe(leaks: Sequence[Leak], subject: str, *, verbose: bool = False) -> str:
    """See ``report.describe``, which is loaded for the first leak."""
    from poolwatch.testing import report

    return report.describe(leaks, subject, verbose=verbose)


def _warn(text: str, leaks: Sequence[Leak]) -> None:
    from poolwatch.testing.leak import PoolLeakWarning

    site = leaks[0].site
    warnings.warn_explicit(
        PoolLeakWarning(text),
        PoolLeakWarning,
        filename=site.file if site else "unknown",
        lineno=site.line if site else 0,
    )
