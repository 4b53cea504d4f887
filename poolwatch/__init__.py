"""Who holds my database connections?

``poolwatch.instrument(engine)`` in the application records who holds each connection of
its pool, with the stack that took it; ``poolwatch tui`` shows it from another terminal,
joined with what PostgreSQL says.
"""

from poolwatch.agent import Watch, instrument, snapshot, uninstrument
from poolwatch.errors import PoolwatchError
from poolwatch.labels import label, long_hold
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
from poolwatch.version import VERSION as __version__

__all__ = [
    "Finding",
    "Frame",
    "Hold",
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
    "instrument",
    "label",
    "long_hold",
    "snapshot",
    "uninstrument",
]
