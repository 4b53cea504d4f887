"""What ``poolwatch attach`` does in the application, in a thread of its own.

All of it may run for the first time in the middle of an incident, beside the threads of
the application: it never waits for them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from poolwatch.agent.instrument import (
    agent,
    instrument,
    instrument_without_agent,
    uninstrument,
)
from poolwatch.errors import PoolwatchError, UsageError
from poolwatch.ledger.settings import disabled
from poolwatch.protocol import sockets
from poolwatch.runtime.libraries import with_pools
from poolwatch.runtime.program import program

_SECOND_LOOK_S = 0.1
"""Until what was on its way at the first look has arrived; the third is at a tick."""

Answer = dict[str, Any]
"""What is told to the command, as a JSON object."""


class _Attachment(NamedTuple):
    """The attach that has instrumented this process."""

    made: Path | None
    """The socket directory, if there was none."""


class _State:
    """Whether an attach has instrumented this process. One order at a time."""

    def __init__(self) -> None:
        self.current: _Attachment | None = None
        self.reset_lock()

    def reset_lock(self) -> None:
        """In a forked child: the thread that may hold it exists only in the parent."""
        self.lock = Lock()


_state = _State()
os.register_at_fork(after_in_child=_state.reset_lock)


def is_attached() -> bool:
    """Whether an attach has instrumented this process."""
    return _state.current is not None


def obey(order: Answer, tell: Callable[[Answer], object]) -> None:
    """Attach or undo, as ordered, and tell the outcome.

    A refusal is one sentence with its exit code.
    """
    try:
        with _state.lock:
            answer = _end() if order["undo"] else _begin(order["directory"])
    except PoolwatchError as error:
        answer = {"refused": str(error), "exit_code": error.exit_code}
    tell(answer)


def _begin(directory: str | None) -> Answer:
    if agent.pools is not None and (agent.ledger.pools or agent.pools.watches_all):
        return {"said": "already"}
    if disabled():
        raise UsageError("POOLWATCH_DISABLE is set in that process")
    known = with_pools()
    if not any(name in sys.modules for name in known):
        raise UsageError(
            f"that process has loaded none of the pool libraries: {', '.join(known)}"
        )
    folder = sockets.runtime_directory(directory)
    sockets.new_path(folder)  # raises an error if it is too long
    made = None if folder.exists() else folder
    sockets.prepare(folder)
    _state.current, agent.directory = _Attachment(made), folder
    try:
        # hooks first: they record what is checked out from now
        instrument_without_agent()
        if agent.pools is not None:
            agent.pools.adopt()
            time.sleep(_SECOND_LOOK_S)
            agent.pools.adopt()
        instrument()  # the first viewer sees what was adopted
    except BaseException:
        _end()
        raise
    pools = list(agent.ledger.pools.values())
    return {
        "said": "attached",
        "program": program(),
        "directory": str(folder),
        "pools": len(pools),
        "holds": sum(hold.adopted for each in pools for hold in each.recorded_holds()),
    }


def _end() -> Answer:
    current, _state.current = _state.current, None
    if current is None:
        return {"said": "not attached"}
    uninstrument()
    if current.made is not None:
        with suppress(OSError):  # another process has its socket there
            current.made.rmdir()
    return {"said": "undone"}
