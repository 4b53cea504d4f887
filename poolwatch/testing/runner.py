"""Reads pytest's own functions and frames, where it has no public interface."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import _pytest.fixtures
import _pytest.python
import _pytest.runner
import pytest

from poolwatch.testing.scopes import fixture_name


def fails_as_expected() -> bool:
    """Whether the running test has failed as expected (xfail).

    Only the report shows that. A hook for reports would run three times per test, so
    the reports are read from a local variable of pytest when there is a leak to judge.
    """
    frame: Any = sys._getframe(1)  # noqa: SLF001 - the documented way
    while (
        frame is not None
        and frame.f_code is not _pytest.runner.runtestprotocol.__code__
    ):
        frame = frame.f_back
    reports = frame.f_locals.get("reports", ()) if frame is not None else ()
    return any(hasattr(each, "wasxfail") and each.skipped for each in reports)


def overrides_fixture(item: pytest.Item, name: str) -> bool:
    """Whether the project overrides a fixture of this plugin for a test."""
    fixtures = item.session._fixturemanager  # noqa: SLF001 - pytest has no public way
    return len(fixtures.getfixturedefs(name, item) or ()) > 1


def runner_functions() -> Iterator[FunctionType]:
    """Return the functions of pytest that call tests and fixtures: stacks end there.

    Some are private, and left out if this version of pytest does not have them.
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


def fixture_at_work(thread: int) -> tuple[str, str] | None:
    """Return "set-up" or "tear-down", and the name of the fixture, if there is one.

    ``thread`` is the ident of the main thread, whose stack is read.
    """
    # loaded for the first stand-still
    from poolwatch.diagnosis.references.frames import variables_of
    from poolwatch.stacks.capture import current_frames

    frame = current_frames().get(thread)
    while frame is not None:
        for phase, code, variable in _FIXTURE_CODES:
            if frame.f_code is code:
                variables = variables_of(frame)
                return phase, fixture_name(variables[variable])
        if frame.f_code is _pytest.python.pytest_pyfunc_call.__code__:
            return None
        frame = frame.f_back
    return None


_FIXTURE_CODES = (
    ("set-up", _pytest.fixtures.pytest_fixture_setup.__code__, "fixturedef"),
    ("tear-down", _pytest.fixtures.FixtureDef.finish.__code__, "self"),
)
"""The functions of pytest that run a fixture, and their variable that has it."""
