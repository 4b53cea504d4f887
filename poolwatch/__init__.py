"""Who holds my database connections?

``poolwatch.instrument(engine)`` in the application records who holds each connection of
its pool, with the stack at its checkout; ``poolwatch tui`` shows it from another
terminal, joined with what PostgreSQL says.

The names below are loaded when they are first used, so that ``import poolwatch`` costs
an application next to nothing.

PYTEST_DONT_REWRITE: ``poolwatch run -- pytest`` has this module before pytest, which
would warn that it comes too late to rewrite assertions here; there are none.
"""

TYPE_CHECKING = False  # importing typing takes longer than all of this module
if TYPE_CHECKING:
    __version__: str
    from poolwatch.agent.instrument import instrument, snapshot, uninstrument
    from poolwatch.agent.metrics import export_metrics
    from poolwatch.agent.watch import Watch
    from poolwatch.errors import PoolwatchError
    from poolwatch.ledger.labels import label, long_hold
    from poolwatch.model import (
        Finding,
        Frame,
        Hold,
        PoolStats,
        Process,
        ServerRow,
        SiteStats,
        Snapshot,
        Source,
        Wait,
    )
    from poolwatch.testing.leak import Leak, PoolLeakError, PoolLeakWarning
    from poolwatch.testing.no_leaks import no_leaks

__all__ = [
    "Finding",
    "Frame",
    "Hold",
    "Leak",
    "PoolLeakError",
    "PoolLeakWarning",
    "PoolStats",
    "PoolwatchError",
    "Process",
    "ServerRow",
    "SiteStats",
    "Snapshot",
    "Source",
    "Wait",
    "Watch",
    "__version__",
    "export_metrics",
    "instrument",
    "label",
    "long_hold",
    "no_leaks",
    "snapshot",
    "uninstrument",
]

_HOME = {
    "__version__": "version",
    "Leak": "testing.leak",
    "PoolLeakError": "testing.leak",
    "PoolLeakWarning": "testing.leak",
    "PoolwatchError": "errors",
    "Watch": "agent.watch",
    "export_metrics": "agent.metrics",
    "instrument": "agent.instrument",
    "label": "ledger.labels",
    "long_hold": "ledger.labels",
    "no_leaks": "testing.no_leaks",
    "snapshot": "agent.instrument",
    "uninstrument": "agent.instrument",
}
_THERE = {"__version__": "VERSION"}


def __getattr__(name: str) -> object:
    """Load a public name from its module (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'poolwatch' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"poolwatch.{_HOME.get(name, 'model')}")
    value = globals()[name] = getattr(module, _THERE.get(name, name))
    return value


def __dir__() -> list[str]:
    """Name what is public, loaded or not."""
    return sorted(__all__)
