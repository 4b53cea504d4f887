"""Options, markers and fixtures of the pytest plugin ``pool_leaks``.

Imported at every start of pytest where poolwatch is installed, so it imports other
modules only when the plugin is switched on.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from poolwatch.testing.baseline import Baseline
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
    """Add the options; their prefix is not poolwatch, which another project uses."""
    group = parser.getgroup("pool_leaks", "connection leaks (poolwatch)")
    group.addoption(
        "--pool-leaks",
        choices=MODES,
        help="for a test that leaks a database connection: do nothing, issue a "
        "PoolLeakWarning (default), or fail its teardown. Every pool is instrumented "
        "automatically.",
    )
    group.addoption(
        "--pool-leaks-grace",
        type=_seconds,
        metavar="SECONDS",
        help="how long to wait after a test for connections to be returned (default: "
        "0.2 for those of other threads, else 0)",
    )
    group.addoption(
        "--pool-leaks-hang",
        type=_seconds,
        metavar="SECONDS",
        help="tell on standard error who holds and who blocks, when a test or fixture "
        "has stood still for so long in a pool wait or a statement (default: 10; "
        "0: never)",
    )
    group.addoption(
        "--pool-leaks-baseline",
        metavar="FILE",
        help="the known leaks of the project: only others count. A leak is known by "
        "its kind, and the file and function that checked out the connection",
    )
    group.addoption(
        "--pool-leaks-update",
        action="store_true",
        help="write the leaks of this run to the file of --pool-leaks-baseline",
    )
    group.addoption(
        "--pool-leaks-json", metavar="PATH", help="write the leaks to a JSON file"
    )
    parser.addini("pool_leaks", "off, warn or error: as --pool-leaks", default="warn")
    parser.addini("pool_leaks_grace", "as --pool-leaks-grace", default="")
    parser.addini("pool_leaks_hang", "as --pool-leaks-hang", default="10")
    parser.addini("pool_leaks_baseline", "as --pool-leaks-baseline", default="")
    parser.addini("pool_leaks_json", "as --pool-leaks-json", default="")
    parser.addini(
        "pool_leaks_ignore",
        "leaks to ignore, one glob per line: it is matched against the file, function, "
        "file::function and dotted name of each frame of the stack at the checkout; "
        "text after # is the reason",
        type="linelist",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Begin before anything of the project is imported.

    At that time there are no pools yet, so none must be searched for.
    """
    _begin(early_config, early_config.known_args_namespace)


def pytest_configure(config: pytest.Config) -> None:
    """Add the markers; begin now if a conftest loaded this plugin."""
    from poolwatch.testing.markers import ALLOW, LIMIT

    for line in (ALLOW, LIMIT):
        config.addinivalue_line("markers", line)
    if not config.pluginmanager.has_plugin(_SESSION):
        _begin(config, config.option)


def _begin(config: pytest.Config, options: argparse.Namespace) -> None:
    """Begin the run, unless the plugin is switched off."""
    mode = options.pool_leaks or str(config.getini("pool_leaks")).strip()
    if mode not in MODES:
        raise pytest.UsageError(f"pool_leaks must be off, warn or error, not {mode!r}")
    if mode == "off":
        if options.pool_leaks_update:
            raise pytest.UsageError("--pool-leaks-update needs leaks: not with off")
        return
    from poolwatch.runtime.gc_pause import undisturbed

    grace = _ini_seconds(config, options.pool_leaks_grace, "pool_leaks_grace")
    hang = _ini_seconds(config, options.pool_leaks_hang, "pool_leaks_hang") or 0.0
    baseline = _baseline(config, options)
    session = undisturbed(
        lambda: _session(
            config, error=mode == "error", grace=grace, hang=hang, baseline=baseline
        )
    )
    config.stash[_RUN] = session
    config.pluginmanager.register(session, _SESSION)
    session.begin()


def _session(config: pytest.Config, **settings: Any) -> PoolLeaks:
    from poolwatch.testing.session import PoolLeaks

    return PoolLeaks(config, **settings)


def _baseline(config: pytest.Config, options: argparse.Namespace) -> Baseline | None:
    """The known leaks, if there is a file of them."""
    option, ini = options.pool_leaks_baseline, config.getini("pool_leaks_baseline")
    if not option and not ini:
        if options.pool_leaks_update:
            raise pytest.UsageError("--pool-leaks-update needs --pool-leaks-baseline")
        return None
    from poolwatch.testing.baseline import Baseline

    directory = config.invocation_params.dir if option else config.rootpath
    path = directory / (option or ini)
    baseline = Baseline(path, config, update=options.pool_leaks_update)
    config.pluginmanager.register(baseline)
    return baseline


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run: uninstrument."""
    session = config.stash.get(_RUN, None)
    if session is not None:
        config.pluginmanager.unregister(name=_SESSION)
        session.end()


@pytest.fixture(scope="session")
def pool_watch_engines() -> None:
    """Override it to judge only some pools: return a list of engines or pools."""


@pytest.fixture
def pool_watch(request: pytest.FixtureRequest) -> PoolWatch:
    """The connections that this test holds: ``holds()``, ``peak``, ``snapshot()``."""
    from poolwatch.testing.fixtures import PoolWatch

    session = request.config.stash.get(_RUN, None)
    return PoolWatch(None if session is None else session.owner_of(request.node))


@pytest.fixture
def assert_no_pool_leaks() -> AssertNoPoolLeaks:
    """Assert that a block, ``with assert_no_pool_leaks:``, returns all connections.

    Also ``with assert_no_pool_leaks(engine, grace=0.1):``, and with ``async with``.
    ``assert_no_pool_leaks.now()`` asserts that no connection is out at this point.
    """
    from poolwatch.testing.fixtures import AssertNoPoolLeaks

    return AssertNoPoolLeaks()


@pytest.fixture
def assert_max_pool_checkouts() -> AssertMaxPoolCheckouts:
    """Fail a block that holds too many connections at once.

    ``with assert_max_pool_checkouts(2):`` allows two; without a call, one is allowed.
    """
    from poolwatch.testing.fixtures import AssertMaxPoolCheckouts

    return AssertMaxPoolCheckouts()


def _ini_seconds(config: pytest.Config, given: float | None, name: str) -> float | None:
    """The value of an option, else of the ini file; None if neither has one."""
    ini = str(config.getini(name)).strip()
    if given is not None or not ini:
        return given
    try:
        return _seconds(ini)
    except argparse.ArgumentTypeError as error:
        raise pytest.UsageError(f"{name} {error}") from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 3600:
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds >= 0 and < 3600, not {text!r}"
        )
    return value
