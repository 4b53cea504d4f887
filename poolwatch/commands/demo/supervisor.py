"""The demo database's supervisor: ``python -m poolwatch.commands.demo.supervisor``.

The process prepares the database, reports its URL in a line of JSON on standard output,
and cleans up when its standard input is closed, even if the demo was killed. Its
settings are environment variables, so that ``ps`` shows no password.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from poolwatch.commands.demo import server
from poolwatch.errors import PoolwatchError

DSN = "POOLWATCH_DEMO_DSN"
"""Environment variable: the user's own database; empty for the embedded one."""
BASE = "POOLWATCH_DEMO_BASE"
"""Environment variable: the temporary directory, removed at the end."""
_LOOK_S = 1.0


def main() -> None:
    """Run the database until standard input ends, then clean up."""
    base = Path(os.environ[BASE])
    signal.signal(signal.SIGTERM, _exit)
    try:
        with _database(base) as url:
            _report(url=url)
            _wait_for_end()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except PoolwatchError as error:
        _report(error=str(error))
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _database(base: Path) -> AbstractContextManager[str]:
    dsn = os.environ.pop(DSN, "")
    if not dsn:
        return server.embedded(base / "pg")
    from poolwatch.commands.demo import lease

    return lease.leased(dsn)


def _wait_for_end() -> None:
    """Wait until standard input ends.

    A signal that comes just before a read begins would not be seen until its end.
    """
    descriptor = sys.stdin.fileno()
    while not select.select([descriptor], [], [], _LOOK_S)[0] or os.read(descriptor, 1):
        pass


def _report(**message: str) -> None:
    print(json.dumps(message), flush=True)


def _exit(signum: int, _frame: object) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    main()
