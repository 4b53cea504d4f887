"""pytest's hooks for one run: who works when, and what is said of whom.

A leak that is found at the end of its own test is that test's error, at its teardown.
One that is found later (a fixture's, a thread's, what the collector met three tests on)
is reported for the test that answers for it, never for the one that happens to run.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import _pytest.fixtures
import _pytest.python
import _pytest.runner
import pytest

from poolwatch.agent.instrument import agent
from poolwatch.testing.judge import Judge
from poolwatch.testing.markers import MARKERS
from poolwatch.testing.owners import Owner, Owners
from poolwatch.testing.results import Findings
from poolwatch.testing.scopes import Standing
from poolwatch.testing.watching import Watching

if TYPE_CHECKING:
    from poolwatch.testing.leak import Leak

_HEADING = "pool leaks"


class PoolLeaks:
    """One run."""

    def __init__(
        self, config: pytest.Config, *, error: bool, grace: float | None
    ) -> None:
        self._config = config
        self._error = error
        self._ledger = agent.ledger
        self._owners = Owners()
        self._judge = Judge(
            grace=grace, ignore=config.getini("pool_leaks_ignore"), root=config.rootpath
        )
        self._watching = Watching()
        self._standing: list[Standing] = []
        self._files: list[Owner] = []
        self._before: list[Owner | None] = []
        """Whom the main thread worked for before a fixture's end, innermost last."""
        self._findings = Findings(config, error=error)
        self._junit = False
        self._owner: Owner | None = None
        """The owner that stands for the running test."""
        self._home: Any = None
        """Where the last test stands, in a file or class, ..."""
        self._narrows = False
        """... whether that overrides ``pool_watch_engines``, and ..."""
        self._special = False
        """... whether all that stands there is special: by that, or by a marker."""
        self._of_tests: set[Any] = set()
        """Fixtures that last for one test."""
        self._before_call: Callable[[], object] | None = None
        """The preparation of the running test, once its setup is done: plugins beneath
        count on theirs during the setup."""

    def owner_of(self, item: Any) -> Owner | None:
        """The owner that stands for a running test."""
        owner = self._owner
        return owner if owner is not None and owner.node is item else None

    # -- begin and end ---------------------------------------------------------------

    def begin(self) -> None:
        """Watch every engine, as soon as there is SQLAlchemy."""
        if not self._error:
            lines = self._config.getini("filterwarnings")
            # Python hides resource warnings. First in the list: whatever the project
            # says of them comes later and wins.
            lines.insert(0, "always::poolwatch.testing.leak.PoolLeakWarning")
        self._junit = bool(getattr(self._config.known_args_namespace, "xmlpath", None))
        for function in beneath_tests():
            agent.end_stacks_at(function)
        agent.ledger.observers.append(self._owners)
        self._owners.follow()
        self._watching.begin()

    def end(self) -> None:
        """Take everything off."""
        self._owners.unfollow()
        agent.ledger.observers.remove(self._owners)
        self._watching.end()

    # -- who works now -----------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, Any, Any]:
        """What a file does when it is imported belongs to the file."""
        before = self._owners.current
        owner = self._owners.current = Owner("collection", collector)
        try:
            return (yield)
        finally:
            self._owners.current = before
            if owner.out or owner.dropped:
                self._files.append(owner)

    # Each of these runs once or more for every test: there are as few as can be, plain
    # functions where possible, and what only some tests need is done for those.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """From here on the main thread works for this test; a rerun is another one."""
        owner = self._owner = self._owners.current = Owner("test", item)
        self._before_call = None
        if self._ledger.changes != self._watching.seen:
            self._watching.again()
        if item.parent is not self._home:
            self._move(item)
        if self._special or item.own_markers:
            self._prepare(item, owner)

    def _move(self, item: pytest.Item) -> None:
        """See what all tests of a place have in common."""
        self._findings.runs_tests = True
        self._home = item.parent
        self._narrows = _overridden(item, "pool_watch_engines")
        parents = item.listchain()[:-1]
        marks = (mark for parent in parents for mark in parent.own_markers)
        marked = any(mark.name in MARKERS for mark in marks)
        self._special = self._narrows or marked

    def _prepare(self, item: pytest.Item, owner: Owner) -> None:
        """See what is special about a test."""
        if self._narrows:
            self._before_call = partial(self._narrow, item, owner)
        if not any(mark.name in MARKERS for mark in item.iter_markers()):
            return
        from poolwatch.testing.limits import limits_of

        try:
            owner.limits = limits = limits_of(item)
            owner.notable = True
        except pytest.fail.Exception as error:
            self._before_call = partial(_raise, error)
        else:
            owner.keeps_peak = limits.watch_peak

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Prepare a test that needs it; an exception fails the test."""
        prepare, self._before_call = self._before_call, None
        if prepare is not None and self.owner_of(item) is not None:
            prepare()

    def _narrow(self, item: pytest.Item, owner: Owner) -> None:
        """Judge only the pools that the project wants judged."""
        owner.pools = self._narrowed(item)
        for each in self._standing:
            if each.owner.blamed == item.nodeid:
                each.owner.pools = owner.pools

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> None:
        """A fixture of a wider scope answers for what it takes."""
        if fixturedef in self._of_tests:
            return
        if fixturedef.scope == "function":
            self._of_tests.add(fixturedef)
            return
        self._fixtures_up()
        standing = Standing(fixturedef, request)
        self._standing.append(standing)
        # Finalizers run last in, first out: this one when all others are done ...
        fixturedef.addfinalizer(lambda: self._fixture_over(standing))
        self._owners.rising.append(standing)

    def _fixtures_up(self) -> None:
        """See to those whose setup is over."""
        rising = self._owners.rising
        while rising and rising[-1].is_up:
            standing = rising.pop()
            standing.owner.failed = standing.has_failed()
            # ... and this one before the fixture's own code after its yield.
            standing.definition.addfinalizer(partial(self._fixture_ends, standing))

    def _none_rising(self) -> None:
        """See to all: what still seems to rise has failed before it began."""
        while self._owners.rising:
            self._fixtures_up()
            del self._owners.rising[-1:]

    def _fixture_ends(self, standing: Standing) -> None:
        self._before.append(self._owners.current)
        self._owners.current = standing.owner

    def _fixture_over(self, standing: Standing) -> None:
        self._owners.current = self._before.pop() if self._before else None
        self._standing.remove(standing)
        for owner in (standing.owner, *standing.entrusted):
            self._tell_later(owner)

    def _entrust(self, owner: Owner) -> None:
        """What a fixture that still stands has in hand is not judged yet."""
        for standing in reversed(self._standing):
            if owner.out:
                standing.take_over(owner, self._owners)

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
        owner, owners = self._owner, self._owners
        if owners.rising:
            self._none_rising()
        if owner is None or owner.node is not item:  # its setup was another plugin's
            return (yield)
        owners.current = owner
        if self._ledger.changes != self._watching.seen:
            self._watching.again()
        try:
            result = yield
        except BaseException:
            owner.failed = True
            self._own_leaks(item, owner)
            raise
        finally:
            owners.current = self._owner = None
            if owners.late:
                self._take_in_collected()
        owner.over = True
        if owner.out or owner.notable or self._junit:
            problem = self._problem(item, owner)
            if problem is not None:
                pytest.fail(problem, pytrace=False)
        return result

    def _own_leaks(self, item: pytest.Item, owner: Owner) -> list[Leak]:
        """What the test itself has leaked; nothing if it has failed already."""
        had_out = bool(owner.out) or bool(owner.dropped)
        leaks = self._judge.leaks(owner, self._entrust) if had_out else []
        owner.failed = owner.failed or _fails_as_expected()
        owner.over = True
        if owner.peak and self._junit:
            item.user_properties.append(("pool_peak", owner.peak))
        if leaks and owner.failed:
            from poolwatch.text.format import plural

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
        limits = owner.limits
        if limits is None and not leaks:
            return None
        broken = None if owner.failed or limits is None else limits.broken(owner)
        if limits is not None and limits.leaks is not None and not owner.failed:
            if len(leaks) < limits.leaks:
                from poolwatch.text.format import plural

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
        self._findings.of_test(item, owner, leaks)
        if self._error:
            return "\n".join(filter(None, (text, broken)))
        _warn(text, leaks)
        return broken

    @property
    def _everything(self) -> bool:
        return bool(self._config.getoption("verbose") >= 2)

    def pytest_exception_interact(self, node: Any) -> None:
        """Note that a test fails: its traceback keeps its variables.

        Not told of one that is expected to fail: see _fails_as_expected.
        """
        owner = self.owner_of(node)
        if owner is not None:
            owner.failed = True

    # -- what is found later -----------------------------------------------------------

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
        leaks = self._judge.leaks(owner, self._entrust)
        if owner.out:  # taken meanwhile
            self._owners.again[id(owner)] = owner
        if not leaks or owner.failed:
            return
        text = in_words(leaks, owner.name, everything=self._everything)
        self._findings.of_another(owner, leaks, text)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(
        self, session: pytest.Session
    ) -> Generator[None, Any, Any]:
        """Judge what is left; the exit code is honest about it.

        The innermost of its wrappers: there the filters for warnings are set.
        """
        self._none_rising()
        self._owners.current = None
        left = [*self._files, *list(self._owners.again.values())]
        if any(owner.out for owner in left):
            gc.collect()
        for owner in left:
            self._tell_later(owner)
        self._take_in_collected()
        failed = self._findings.conclude(self._owners.unjudged)
        if failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        result = yield
        self._findings.write_json()
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self) -> None:
        """In xdist's controller: any report may bring a find."""
        self._findings.listen()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """In the controller: take in what a worker could not tell."""
        self._findings.take_in(node)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Our section, and the annotations for GitHub."""
        self._findings.write_summary(terminalreporter)


def _raise(error: BaseException) -> None:
    raise error


def _fails_as_expected() -> bool:
    """Whether the call of the running test has failed, and nobody minds.

    Its report says so. The hooks that are told run three times for every test, so it is
    looked for where pytest keeps the reports, when there is a leak to judge.
    """
    frame: Any = sys._getframe(1)  # noqa: SLF001 - the documented way
    while (
        frame is not None
        and frame.f_code is not _pytest.runner.runtestprotocol.__code__
    ):
        frame = frame.f_back
    reports = frame.f_locals.get("reports", ()) if frame is not None else ()
    return any(hasattr(each, "wasxfail") and each.skipped for each in reports)


def _overridden(item: pytest.Item, name: str) -> bool:
    """Whether the test can see another definition of a fixture than ours."""
    fixtures = item.session._fixturemanager  # noqa: SLF001 - pytest has no public way
    return len(fixtures.getfixturedefs(name, item) or ()) > 1


def beneath_tests() -> Iterator[FunctionType]:
    """What calls tests and fixtures in pytest: there their story begins.

    Not all of it is public: what is not there is not there.
    """
    for module, name in (
        (_pytest.python, "pytest_pyfunc_call"),
        (_pytest.runner, "pytest_runtest_call"),
        (_pytest.fixtures, "call_fixture_func"),
        (_pytest.fixtures, "_teardown_yield_fixture"),
    ):
        function = getattr(module, name, None)
        if isinstance(function, FunctionType):
            yield function


def in_words(leaks: Sequence[Leak], who: str, *, everything: bool = False) -> str:
    """As leaks.telling says it; loaded when there is a leak to tell of."""
    from poolwatch.testing.report import in_words as tell

    return tell(leaks, who, everything=everything)


def _warn(text: str, leaks: Sequence[Leak]) -> None:
    from poolwatch.testing.leak import PoolLeakWarning

    site = leaks[0].site
    warnings.warn_explicit(
        PoolLeakWarning(text),
        PoolLeakWarning,
        filename=site.file if site else "unknown",
        lineno=site.line if site else 0,
    )
