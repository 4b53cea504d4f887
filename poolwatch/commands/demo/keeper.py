"""The keeper of the demo's database: ``python -m poolwatch.commands.demo.keeper``.

A process of its own that prepares the database, says so in one line of JSON on
standard output, and cleans up when its standard input ends: also when the demo was
killed. What it reads comes by the environment, so that no password shows in ``ps``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from poolwatch.commands.demo import server
from poolwatch.errors import PoolwatchError

DSN = "POOLWATCH_DEMO_DSN"
"""Environment variable with the user's own database, empty for the embedded one."""
BASE = "POOLWATCH_DEMO_BASE"
"""Environment variable with the temporary directory; removed at the end."""


def main() -> None:
    """Keep the database until standard input ends, then clean up."""
    base = Path(os.environ[BASE])
    signal.signal(signal.SIGTERM, _stop)
    try:
        with _database(base) as url:
            _say(url=url)
            sys.stdin.buffer.read()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except PoolwatchError as error:
        _say(error=str(error))
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _database(base: Path) -> AbstractContextManager[str]:
    dsn = os.environ.pop(DSN, "")
    if not dsn:
        return server.embedded(base / "pg")
    from poolwatch.commands.demo import lease

    return lease.leased(dsn)


def _say(**message: str) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _stop(signum: int, _frame: object) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    main()
