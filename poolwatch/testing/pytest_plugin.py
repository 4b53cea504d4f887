"""Options, markers and fixtures of the pytest plugin ``pool_leaks``.

Imported at every start of pytest where poolwatch is installed: it loads nothing else
before it is known that the plugin is wanted.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from poolwatch.testing.fixtures import (
        AssertMaxPoolCheckouts,
        AssertNoPoolLeaks,
        PoolWatch,
    )
    from poolwatch.testing.session import PoolLeaks

MODES = ("off", "warn", "error")
_SESSION = "pool_leaks_session"
_RUN = pytest.StashKey["PoolLeaks"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ours; none begins with poolwatch, which is another project's."""
    group = parser.getgroup("pool_leaks", "connection leaks (poolwatch)")
    group.addoption(
        "--pool-leaks",
        choices=MODES,
        help="what a test that leaks a database connection gets: nothing, a "
        "PoolLeakWarning (default) or an error at its teardown. Engines of SQLAlchemy "
        "are found by themselves.",
    )
    group.addoption(
        "--pool-leaks-grace",
        type=_seconds,
        metavar="SECONDS",
        help="time that a connection gets to come back after the test (default: 0.2 "
        "for those of other threads, else 0)",
    )
    group.addoption(
        "--pool-leaks-json", metavar="PATH", help="write what was found as JSON"
    )
    parser.addini("pool_leaks", "off, warn or error: as --pool-leaks", default="warn")
    parser.addini("pool_leaks_grace", "as --pool-leaks-grace", default="")
    parser.addini("pool_leaks_json", "as --pool-leaks-json", default="")
    parser.addini(
        "pool_leaks_ignore",
        "leaks that do not count, a line each: a glob that one frame of the stack at "
        "the checkout matches by its file, its function, file::function or dotted "
        "name; what follows # is the reason",
        type="linelist",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Begin to watch before anything of the project is imported.

    Then no pool can be there already, and none needs to be searched for.
    """
    _begin(early_config, early_config.known_args_namespace)


def pytest_configure(config: pytest.Config) -> None:
    """Begin to watch now if a conftest has loaded this plugin."""
    from poolwatch.testing.markers import ALLOW, LIMIT

    for line in (ALLOW, LIMIT):
        config.addinivalue_line("markers", line)
    if not config.pluginmanager.has_plugin(_SESSION):
        _begin(config, config.option)


def _begin(config: pytest.Config, options: argparse.Namespace) -> None:
    """Begin, unless that is switched off."""
    mode = options.pool_leaks or str(config.getini("pool_leaks")).strip()
    if mode not in MODES:
        raise pytest.UsageError(f"pool_leaks must be off, warn or error, not {mode!r}")
    if mode == "off":
        return
    from poolwatch.runtime.gc_pause import undisturbed

    grace = _grace(config, options.pool_leaks_grace)
    session = undisturbed(lambda: _session(config, error=mode == "error", grace=grace))
    config.stash[_RUN] = session
    config.pluginmanager.register(session, _SESSION)
    session.begin()


def _session(config: pytest.Config, *, error: bool, grace: float | None) -> PoolLeaks:
    from poolwatch.testing.session import PoolLeaks

    return PoolLeaks(config, error=error, grace=grace)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take everything off again."""
    session = config.stash.get(_RUN, None)
    if session is not None:
        config.pluginmanager.unregister(name=_SESSION)
        session.end()


@pytest.fixture(scope="session")
def pool_watch_engines() -> None:
    """Override it to judge only these: return a list of engines or pools."""


@pytest.fixture
def pool_watch(request: pytest.FixtureRequest) -> PoolWatch:
    """The connections that this test holds: ``holds()``, ``peak``, ``snapshot()``."""
    from poolwatch.testing.fixtures import PoolWatch

    session = request.config.stash.get(_RUN, None)
    return PoolWatch(None if session is None else session.owner_of(request.node))


@pytest.fixture
def assert_no_pool_leaks() -> AssertNoPoolLeaks:
    """Assert of a block, ``with assert_no_pool_leaks:``, that it returns them all.

    Also ``with assert_no_pool_leaks(engine, grace=0.1):``, and with ``async with``.
    """
    from poolwatch.testing.fixtures import AssertNoPoolLeaks

    return AssertNoPoolLeaks()


@pytest.fixture
def assert_max_pool_checkouts() -> AssertMaxPoolCheckouts:
    """Fail a block that holds too many connections at once.

    ``with assert_max_pool_checkouts(2):`` allows two, uncalled it allows one.
    """
    from poolwatch.testing.fixtures import AssertMaxPoolCheckouts

    return AssertMaxPoolCheckouts()


def _grace(config: pytest.Config, given: float | None) -> float | None:
    ini = str(config.getini("pool_leaks_grace")).strip()
    if given is not None or not ini:
        return given
    try:
        return _seconds(ini)
    except argparse.ArgumentTypeError as error:
        raise pytest.UsageError(f"pool_leaks_grace {error}") from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 3600:
        raise argparse.ArgumentTypeError(f"must be seconds, not {text!r}")
    return value
