"""The viewer's registry of processes: answering, silent and ended ones.

A process stays registered until the kernel says that it has ended, or until its agent
stops listening. A silent process is asked again at growing intervals, without delaying
the others.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from poolwatch.client.calls import BRIEF_S, Calls, Outcome
from poolwatch.client.client import Client
from poolwatch.client.view import CarriedState, View, error_of, postgres_pools, utc
from poolwatch.errors import NoProcessError, SilentError
from poolwatch.model import Process, Unreachable
from poolwatch.protocol import liveness
from poolwatch.protocol.liveness import Peer, State
from poolwatch.protocol.sockets import Address
from poolwatch.text.naming import process_name

ENDED_S = 60.0
"""Seconds for which an ended process stays listed while others are running."""
_KNOWN_S = 2.0
"""Seconds to wait for a process that has always answered so far."""
_ENDING_S = 0.1
"""Longest time in seconds from closing a killed process's socket to its end."""
_MAX_ENDED = 64
_BACK_OFF_S = (1.0, 2.0, 5.0, 10.0)
_LATE = "it does not answer in time"
_WORDS: dict[State | None, str] = {
    "running": "it is alive and does not answer",
    "stopped": "it is stopped (state T) and does not answer",
    "ended": "it has ended",
    None: _LATE,
}


@dataclass(slots=True)
class _Entry:
    """The state of one process between two snapshots."""

    address: Address
    carried: CarriedState = field(default_factory=CarriedState)
    peer: Peer | None = None
    answered_at: float | None = None
    """When it last answered, on the monotonic clock."""
    host: str | None = None
    started_at: str | None = None
    name: str | None = None
    failures: int = 0
    """Requests in a row without an answer."""
    ask_at: float = 0.0
    why: str | None = None
    """The last error, unless the process did not answer."""
    state: State | None = None
    """According to the kernel; None if unknown."""
    removed_at: float = 0.0
    """When it was removed, on the monotonic clock."""
    ended: Unreachable | None = None
    """How the snapshot lists it once it has ended."""

    def refresh_state(self) -> State | None:
        """Read the state from the kernel; a continued process is asked at once."""
        before = self.state
        self.state = liveness.state(self.peer) if self.peer else None
        if before == "stopped" != self.state:
            self.ask_at = 0.0
        return self.state

    @property
    def patience_s(self) -> float:
        """How long to wait for an answer, by the earlier answers."""
        if self.failures or self.state == "stopped":
            return BRIEF_S
        return float("inf") if self.answered_at is None else _KNOWN_S

    def answered(self, outcome: Outcome) -> None:
        self.failures, self.ask_at, self.why = 0, 0.0, None
        if outcome.ended is not None:
            self.answered_at = outcome.ended
            process: Process = outcome.value
            self.host, self.started_at = process.host, process.started_at
            self.name = process_name(process)

    def answered_late(self, outcome: Outcome, patience_s: float) -> None:
        """Ask again at once; wait only briefly if that took over ``patience_s``."""
        failures = self.failures
        self.answered(outcome)
        if outcome.ended is not None and outcome.ended - outcome.began > patience_s:
            self.failures = failures

    def failed(self, outcome: Outcome) -> None:
        rest = _BACK_OFF_S[min(self.failures, len(_BACK_OFF_S) - 1)]
        self.failures, self.ask_at = self.failures + 1, time.monotonic() + rest
        silent = outcome.ended is None or isinstance(outcome.error, SilentError)
        self.why = None if silent else error_of(outcome, _LATE)

    def unreachable(self, why: str | None = None) -> Unreachable:
        """Describe a process without a snapshot; ``why`` replaces the usual reason."""
        ended = self.state == "ended"
        why = why or (not ended and self.why) or _WORDS[self.state]
        silent_s = 0.0 if ended else self.silent_s()
        return Unreachable(
            self.address.pid,
            why,
            since=None if silent_s is None else utc(silent_s),
            alive=None if self.state is None else not ended,
            host=self.host,
            started_at=self.started_at,
            name=self.name,
            silent_s=None if ended else silent_s,
        )

    def silent_s(self) -> float | None:
        """Seconds since its last answer; None if unknown.

        If this viewer has had none: since its agent last marked its socket file.
        """
        if self.answered_at is not None:
            return time.monotonic() - self.answered_at
        if self.peer is None:
            return None
        with suppress(OSError):
            marked_at = self.address.path.lstat().st_mtime
            return max(0.0, time.time() - marked_at)
        return None


class ProcessRegistry:
    """Asks all processes of a client for their snapshots. Not thread-safe."""

    def __init__(self, client: Client, calls: Calls, patience_s: float) -> None:
        """``patience_s``: how long to wait for processes not known to be silent."""
        self._client = client
        self._calls = calls
        self._patience_s = patience_s
        self._entries: dict[Address, _Entry] = {}
        self._removed: list[_Entry] = []

    def ask(
        self, late: Mapping[Hashable, Outcome]
    ) -> tuple[dict[Address, View], tuple[Unreachable, ...]]:
        """Return the processes that answered, by address, and the unreachable ones.

        ``late``: outcomes of earlier calls. Raises what Client.agents() raises; not
        NoProcessError while there are processes to list.
        """
        try:
            addresses, error = self._client.agents(), None
        except NoProcessError as none:
            addresses, error = (), none
        for address in addresses:
            entry = self._entries.setdefault(address, _Entry(address))
            entry.peer = address.peer or entry.peer
            answer = late.get(("view", address))
            if answer is not None and answer.error is None:
                entry.answered_late(answer, self._patience_s)
        addresses = [a for a in addresses if a.peer is None or a.path.exists()]
        lost = self._without_socket(addresses)
        views = self._snapshots(addresses)
        silent = self._silent(views.keys() | lost.keys())
        unreachable = (*lost.values(), *silent, *self._ended(views))
        if error is not None and not unreachable:
            raise error
        return views, unreachable

    def carry_over(self, address: Address, carried: CarriedState) -> None:
        """Store the state of a process for its next refresh."""
        self._entries[address].carried = carried

    def _without_socket(
        self, addresses: Collection[Address]
    ) -> dict[Address, Unreachable]:
        """Processes that still listen although their socket file is gone.

        Other processes without a socket file have ended or are no longer instrumented;
        they are removed.
        """
        found: dict[Address, Unreachable] = {}
        for address in self._entries.keys() - set(addresses):
            entry = self._entries[address]
            entry.refresh_state()
            if self._is_listening(address):
                found[address] = entry.unreachable(
                    "it is alive, its socket file is gone"
                )
            else:
                self._remove(address)
        return found

    def _is_listening(self, address: Address) -> bool:
        """Whether the process is known to be alive and to listen."""
        entry = self._entries[address]
        if entry.peer is None or entry.state in (None, "ended"):
            return False
        return liveness.listens(entry.peer, address.path)

    def _remove(self, address: Address) -> None:
        """Remove a process, after waiting a moment for its end."""
        entry = self._entries.pop(address)
        entry.removed_at = time.monotonic()
        while entry.refresh_state() == "running" and (
            time.monotonic() - entry.removed_at < _ENDING_S
        ):
            time.sleep(0.01)
        self._removed.append(entry)

    def _snapshots(self, addresses: Sequence[Address]) -> dict[Address, View]:
        for address in addresses:
            self._entries[address].refresh_state()
        now = time.monotonic()
        due = [a for a in addresses if self._entries[a].ask_at <= now]
        outcomes = self._calls.run(
            {("view", a): partial(self._client.view, a) for a in due},
            self._patience_s,
            limits={("view", a): self._entries[a].patience_s for a in due},
        )
        views: dict[Address, View] = {}
        for address in due:
            entry, outcome = self._entries[address], outcomes["view", address]
            if error_of(outcome, _LATE) is not None or outcome.ended is None:
                entry.failed(outcome)
                continue
            entry.answered(outcome)
            process: Process = outcome.value
            views[address] = View(
                process,
                outcome.began,
                outcome.ended,
                entry.carried,
                postgres_pools(process),
            )
        return views

    def _silent(self, others: Collection[Address]) -> list[Unreachable]:
        """The processes not in ``others``; removes ended and unreachable ones."""
        found = []
        for address in [each for each in self._entries if each not in others]:
            entry = self._entries[address]
            state = entry.refresh_state()
            not_listening = entry.why and state and not self._is_listening(address)
            if state == "ended" or not_listening:
                self._remove(address)
            else:
                found.append(entry.unreachable())
        return found

    def _ended(self, views: Collection[Address]) -> list[Unreachable]:
        """The recently ended processes; all ended ones while no process answers."""
        if views:
            after = time.monotonic() - ENDED_S
            self._removed = [each for each in self._removed if each.removed_at > after]
        del self._removed[:-_MAX_ENDED]
        for entry in self._removed:
            if entry.ended is None and entry.refresh_state() == "ended":
                entry.ended = entry.unreachable()
        return [entry.ended for entry in self._removed if entry.ended]
