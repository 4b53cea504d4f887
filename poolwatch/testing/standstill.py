"""Reports that a run of tests stands still in a pool wait or a statement.

A wait or statement counts if it has lasted long enough and began under the test or
fixture that is running now: the thread of a session's fixture may sit in its statement
while tests go on. A test that is slow by itself has neither, and a pool that has lent a
connection meanwhile moves, however long its queue.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from poolwatch.agent.instrument import agent
from poolwatch.errors import PoolwatchError
from poolwatch.testing.lookout import Lookout
from poolwatch.testing.standing import Standing

if TYPE_CHECKING:
    from poolwatch.testing.owners import Owner, Owners

LASTING_S = 1.0
"""Seconds after which viewers can connect to a run in the same test."""
_MAX_PERIOD_S = 1.0
_MIN_PERIOD_S = 0.05


class Standstills:
    """Detects standstills in one run, and lets viewers connect. A plugin of pytest."""

    def __init__(
        self, owners: Owners, test: Callable[[], Owner | None], *, after_s: float
    ) -> None:
        """``test`` returns the running test, also during the set-up of a fixture.

        ``after_s``: seconds of a stand-still; 0 to report none.
        """
        self._owners = owners
        self._test = test
        self._after_s = after_s
        self._worker = ""
        self._stderr: int | None = None
        self._environment = _environment()
        self._last: Owner | None = None
        """The test or fixture that was running at the last look."""
        self._looked = self._since = time.monotonic()
        """Times of the last look, and of the beginning of the same owner's work."""
        self._reported: set[Standing] = set()
        self._lookout = Lookout(self.look, self.period_s)
        self._before = agent.requested, agent.ledger.test_run
        agent.requested, agent.ledger.test_run = self._lookout.start, owners

    def pytest_configure(self, config: pytest.Config) -> None:
        """Keep the terminal's standard error, which is not captured at this time."""
        worker = getattr(config, "workerinput", {}).get("workerid")
        self._worker = f"[{worker}] " if worker else ""
        with suppress(OSError, ValueError, AttributeError):
            self._stderr = os.dup(_fileno())

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Stop looking before the summary, in which plugins may import for long.

        CPython 3.11 fails to parse what they import while this thread imports, too.
        """
        self._lookout.close()

    def end(self) -> None:
        """Let no viewer connect any more."""
        self._lookout.close()
        agent.requested, agent.ledger.test_run = self._before
        if not agent.listens:
            agent.close()
        stderr, self._stderr = self._stderr, None
        if stderr is not None:
            os.close(stderr)

    @cached_property
    def _directory(self) -> Path | None:
        """The directory for the socket; None if there can be none."""
        from poolwatch.protocol.sockets import runtime_directory

        try:
            return runtime_directory(environ=self._environment)
        except PoolwatchError:
            return None

    @property
    def period_s(self) -> float:
        """Seconds between two looks."""
        wanted = self._after_s / 4 or _MAX_PERIOD_S
        return min(_MAX_PERIOD_S, max(_MIN_PERIOD_S, wanted))

    def look(self) -> None:
        """Look once: open the socket or report, if it is time."""
        now, running = time.monotonic(), self._owners.main_thread_owner()
        if running is not self._last:
            began = self._looked if running is None else running.began
            self._last, self._since = running, max(began, self._looked)
        self._looked = now
        if now - self._since >= LASTING_S and self._directory is not None:
            agent.listen(self._directory)
        if self._after_s and now - self._since >= self._after_s:
            self._report_new(set(self._standing(now)))

    def _standing(self, now: float) -> Iterator[Standing]:
        before = now - self._after_s
        for pool in list(agent.ledger.pools.values()):
            holds = pool.recorded_holds()
            moves = any(hold.checked_out_at > before for hold in holds)
            begun = [
                Standing(wait, wait.requested_at, waits=True)
                for wait in list(pool.waits.values() if not moves else ())
            ]
            begun += [
                Standing(hold, began, waits=False)
                for hold in holds
                if not hold.context.long_hold
                if hold.usage is not None and (began := hold.usage.began) is not None
            ]
            for each in begun:
                if each.began <= before and self._concerns(each):
                    yield each

    def _concerns(self, standing: Standing) -> bool:
        """Whether it began under the test or fixture that is at work."""
        running, since = self._last, self._since
        if (
            running is not None
            and running.kind == "test"
            and self._owners.owner_of(standing.request) is not running
        ):
            # not in the set-up of the wider fixtures of this test
            since = max(since, running.called)
        return standing.began >= since

    def _report_new(self, standing: set[Standing]) -> None:
        """Report, unless this stand-still was reported already."""
        known = bool(self._reported & standing)
        self._reported = standing
        if known or not standing:
            return
        subject = self._worker + self._subject()
        from poolwatch.testing import standstill_report  # loaded for the first one

        text = standstill_report.describe(subject, standing, self._directory)
        if text is not None and self._stderr is not None:
            with suppress(OSError):  # the terminal is gone
                os.write(self._stderr, text.encode("utf-8", "replace"))

    def _subject(self) -> str:
        """The test, or the fixture in its set-up or tear-down."""
        from poolwatch.testing.runner import fixture_at_work

        owner, test = self._last, self._test()
        if owner is not None and owner.kind == "collection":
            return f"the import of {owner.name}"
        fixture = fixture_at_work(self._owners.main_thread)
        if fixture is None:
            return "pytest, outside of the tests," if test is None else test.name
        phase, name = fixture
        when = {"set-up": "for", "tear-down": "after"}[phase]
        if name.startswith("fixture"):
            name = f"the {phase} of {name}"
        elif phase == "tear-down":
            name = name.replace("setup", "teardown", 1).replace("setUp", "tearDown", 1)
        return name + (f" {when} {test.name}" if test else "")


def _environment() -> dict[str, str]:
    """The variables that choose the socket directory, before a test changes them."""
    names = ("POOLWATCH_DIR", "XDG_RUNTIME_DIR")
    found = {name: os.environ[name] for name in names if name in os.environ}
    given = found.get("POOLWATCH_DIR", "")
    if given and not given.startswith("~"):
        found["POOLWATCH_DIR"] = str(Path(given).absolute())
    return found


def _fileno() -> int:
    """The file descriptor of standard error; xdist replaces ``sys.stderr``."""
    for stream in (sys.stderr, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):
            number = stream.fileno()  # type: ignore[union-attr]
            if number >= 0:
                return number
    raise OSError("there is no standard error")
