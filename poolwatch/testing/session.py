"""pytest's hooks for one run: who works when, and what is said of whom.

A leak that is found at the end of its own test is that test's error, at its teardown.
One that is found later (a fixture's, a thread's, what the collector met three tests on)
is reported for the test that answers for it, never for the one that happens to run. A
worker of xdist can only report on its running test: what it finds later travels to the
controller, and is told there.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import _pytest.fixtures
import _pytest.python
import _pytest.runner
import pytest

from poolwatch.agent import agent
from poolwatch.testing.judging import Judge
from poolwatch.testing.late import Late, Told
from poolwatch.testing.markers import MARKERS
from poolwatch.testing.owners import Owner, Owners
from poolwatch.testing.standing import Standing
from poolwatch.testing.watching import Watching

if TYPE_CHECKING:
    from types import CodeType

    from poolwatch.leaks.record import Leak
    from poolwatch.testing.limits import Limits

_OWNER = pytest.StashKey[Owner]()
_LIMITS: pytest.StashKey[Limits] = pytest.StashKey()
_WRONG = pytest.StashKey[BaseException]()
"""What is wrong with its markers."""
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
        self._watching = Watching()
        self._standing: list[Standing] = []
        self._files: list[Owner] = []
        self._before: list[Owner | None] = []
        """Whom the main thread worked for before a fixture's end, innermost last."""
        self._entries: list[dict[str, Any]] = []
        """What was found in this run, in all its processes."""
        self._found: dict[str, list[dict[str, Any]]] = {}
        """By node id: what the report of its teardown will carry."""
        self._unjudged: dict[str, str] = {}
        self._late = Late(config, error=error)
        self._junit = False
        self._runs_tests = False
        self._home: Any = None
        """Where the last test stands, in a file or class, and ..."""
        self._narrows = False
        """... whether that overrides ``pool_watch_engines``."""

    def owner_of(self, item: Any) -> Owner | None:
        """The owner that stands for a running test."""
        owner: Owner | None = item.stash.get(_OWNER, None)
        return owner

    # -- begin and end ---------------------------------------------------------------

    def begin(self) -> None:
        """Watch every engine, as soon as there is SQLAlchemy."""
        if not self._error:
            lines = self._config.getini("filterwarnings")
            # Python hides resource warnings. First in the list: whatever the project
            # says of them comes later and wins.
            lines.insert(0, "always::poolwatch.leaks.record.PoolLeakWarning")
        self._junit = bool(getattr(self._config.known_args_namespace, "xmlpath", None))
        for code in beneath_tests():
            agent.sites.end_at(code)
        agent.ledger.observers.append(self._owners)
        self._owners.follow()
        self._watching.begin()

    def end(self) -> None:
        """Take everything off."""
        self._owners.unfollow()
        agent.ledger.observers.remove(self._owners)
        self._watching.end()

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
        home = collector.nodeid, None, collector.nodeid
        owner = Owner("collection", collector.nodeid, collector.nodeid, home)
        self._owners.current = owner
        try:
            return (yield)
        finally:
            self._owners.current = before
            if owner.out or owner.dropped:
                self._files.append(owner)

    # Each of these runs once or more for every test: plain functions where they can be,
    # and what only some tests need stands behind a test that costs nothing.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """From here on the main thread works for this test; a rerun is another one."""
        node_id = item.nodeid
        owner = Owner("test", node_id, node_id, item.location)
        item.stash[_OWNER] = self._owners.current = owner
        self._runs_tests = True
        self._watching.again()
        for mark in item.iter_markers():
            if mark.name in MARKERS:
                self._limit(item, owner)
                break

    def _limit(self, item: pytest.Item, owner: Owner) -> None:
        from poolwatch.testing.limits import limits_of

        try:
            item.stash[_LIMITS] = limits = limits_of(item)
        except pytest.fail.Exception as error:
            item.stash[_WRONG] = error
        else:
            owner.keeps_peak = limits.watch_peak

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Its setup is done: see which pools count, and whether its markers are right.

        Not before: plugins below count on their setup.
        """
        if _WRONG in item.stash:
            raise item.stash[_WRONG]
        if item.parent is not self._home:  # its neighbours see the same fixtures
            self._home = item.parent
            self._narrows = _overridden(item, "pool_watch_engines")
        if self._narrows:
            owner = item.stash[_OWNER]
            owner.pools = self._narrowed(item)
            for each in self._standing:
                if each.owner.blamed == item.nodeid:
                    each.owner.pools = owner.pools

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: Any, request: Any
    ) -> Generator[None, Any, Any]:
        """A fixture of a wider scope answers for what it takes."""
        if fixturedef.scope == "function":
            return (yield)
        standing = Standing(fixturedef, request)
        self._standing.append(standing)
        before = self._owners.current
        # Finalizers run last in, first out: this one when all others are done ...
        fixturedef.addfinalizer(lambda: self._fixture_over(standing))
        self._owners.current = standing.owner
        try:
            return (yield)
        except BaseException:
            standing.owner.failed = True  # pytest keeps its traceback
            raise
        finally:
            self._owners.current = before
            # ... and this one before the fixture's own code after its yield.
            fixturedef.addfinalizer(lambda: self._fixture_ends(standing))

    def _fixture_ends(self, standing: Standing) -> None:
        self._before.append(self._owners.current)
        self._owners.current = standing.owner

    def _fixture_over(self, standing: Standing) -> None:
        self._owners.current = self._before.pop() if self._before else None
        for owner in (standing.owner, *standing.entrusted):
            self._tell_later(owner)
        self._standing.remove(standing)

    def _entrust(self, owner: Owner) -> None:
        """What a fixture that still stands has in hand is not judged yet."""
        for standing in reversed(self._standing):
            if owner.out:
                standing.take_over(owner)

    def _narrowed(self, item: pytest.Item) -> frozenset[str] | None:
        """Ids of the pools that the project wants judged; None is all."""
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
        """When all its fixtures are done, the test is judged."""
        owner = item.stash.get(_OWNER, None)
        if owner is None:  # its setup was another plugin's
            return (yield)
        self._owners.current = owner
        self._watching.again()
        try:
            result = yield
        except BaseException:
            owner.failed = True
            self._own_leaks(item, owner)
            raise
        finally:
            self._owners.current = None
            del item.stash[_OWNER]  # an item lives as long as the run
        owner.over = True
        if owner.out or owner.dropped or self._junit or _LIMITS in item.stash:
            problem = self._problem(item, owner)
            if problem is not None:
                pytest.fail(problem, pytrace=False)
        return result

    def _own_leaks(self, item: pytest.Item, owner: Owner) -> list[Leak]:
        """What the test itself has leaked; nothing if it has failed already."""
        had_out = bool(owner.out) or bool(owner.dropped)
        leaks = self._judge.leaks(owner, self._entrust) if had_out else []
        owner.over = True
        if owner.peak and self._junit:
            item.user_properties.append(("pool_peak", owner.peak))
        if leaks and owner.failed:
            from poolwatch.text import plural

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
        limits = item.stash.get(_LIMITS, None)
        if limits is None and not leaks:
            return None
        broken = None if owner.failed or limits is None else limits.broken(owner)
        if limits is not None and limits.leaks is not None and not owner.failed:
            if len(leaks) < limits.leaks:
                from poolwatch.text import plural

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
        """For its report, which xdist carries to the controller, and for JUnit."""
        self._found[item.nodeid] = [self._entry(owner, leak) for leak in leaks]
        item.user_properties.append(("pool_leaks", len(leaks)))

    def _entry(self, owner: Owner, leak: Leak) -> dict[str, Any]:
        from poolwatch.testing import summary

        return summary.entry(owner, leak, self._error)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> None:
        """Note that it fails: its traceback keeps its variables.

        Also of one that is expected to fail. (Returns nothing: others make the report.)
        """
        if call.excinfo is not None and not _skipped(call.excinfo.value):
            owner = self.owner_of(item)
            if owner is not None:
                owner.failed = True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Give a report what was found, and gather it, also what comes from workers."""
        if report.when == "teardown" and report.nodeid in self._found:
            report.pool_leaks = self._found.pop(report.nodeid)
        for entry in getattr(report, "pool_leaks", ()):
            if not report.failed:  # it is run again, or expected to fail
                entry["severity"] = "warning"
            self._entries.append(entry)

    # -- what is found later -----------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        """The running test has been reported: tell of others what was found meanwhile.

        In a controller nothing of ours runs here: what comes from workers is told at
        the end.
        """
        self._take_in_collected()
        if self._late.waiting and self._runs_tests and self._worker_output is None:
            self._entries += self._late.tell()

    def _take_in_collected(self) -> None:
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
        if owner.out:  # taken meanwhile
            self._owners.again[id(owner)] = owner
        if not leaks or owner.failed:
            return
        told: Told = {
            "nodeid": owner.blamed,
            "location": owner.location,
            "text": in_words(leaks, owner.name, everything=self._everything),
            "entries": [self._entry(owner, leak) for leak in leaks],
        }
        self._late.add([told])

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(
        self, session: pytest.Session
    ) -> Generator[None, Any, Any]:
        """Judge what is left; the exit code is honest about it.

        The innermost of its wrappers: there the filters for warnings are set.
        """
        self._owners.current = None
        left = [*self._files, *list(self._owners.again.values())]
        if any(owner.out for owner in left):
            gc.collect()
        for owner in left:
            self._tell_later(owner)
        self._take_in_collected()
        self._unjudged |= self._owners.unjudged
        output = self._worker_output
        if output is not None:
            late = self._late.waiting
            output[_IN_WORKER] = {"late": late, "unjudged": self._unjudged}
            return (yield)
        self._entries += self._late.tell()
        failed = any(entry["severity"] == "error" for entry in self._entries)
        if failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        result = yield
        from poolwatch.testing import summary

        summary.write_json(self._config, self._error, self._entries, self._unjudged)
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """In the controller: take in what a worker could not tell."""
        sent = getattr(node, "workeroutput", {}).get(_IN_WORKER)
        if sent is None:
            return
        self._unjudged |= sent["unjudged"]
        self._late.add(sent["late"])

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Our section, and the annotations for GitHub."""
        if not self._entries and not self._unjudged:
            return
        from poolwatch.testing import summary

        summary.write(terminalreporter, self._config, self._entries, self._unjudged)


def _skipped(error: BaseException) -> bool:
    unittest = sys.modules.get("unittest")
    return isinstance(error, pytest.skip.Exception) or (
        unittest is not None and isinstance(error, unittest.SkipTest)
    )


def _overridden(item: pytest.Item, name: str) -> bool:
    """Whether the test can see another definition of a fixture than ours."""
    fixtures = item.session._fixturemanager  # noqa: SLF001 - pytest has no public way
    return len(fixtures.getfixturedefs(name, item) or ()) > 1


def beneath_tests() -> Iterator[CodeType]:
    """The code of pytest's own that calls tests and fixtures: there their story begins.

    Not all of it is public: what is not there is not there.
    """
    for module, name in (
        (_pytest.python, "pytest_pyfunc_call"),
        (_pytest.runner, "pytest_runtest_call"),
        (_pytest.fixtures, "call_fixture_func"),
        (_pytest.fixtures, "_teardown_yield_fixture"),
    ):
        code = getattr(getattr(module, name, None), "__code__", None)
        if code is not None:
            yield code


def in_words(leaks: Sequence[Leak], who: str, *, everything: bool = False) -> str:
    """As leaks.telling says it; loaded when there is a leak to tell of."""
    from poolwatch.leaks.telling import in_words as tell

    return tell(leaks, who, everything=everything)


def _warn(text: str, leaks: Sequence[Leak]) -> None:
    from poolwatch.leaks.record import PoolLeakWarning

    site = leaks[0].site
    warnings.warn_explicit(
        PoolLeakWarning(text),
        PoolLeakWarning,
        filename=site.file if site else "unknown",
        lineno=site.line if site else 0,
    )
