"""Who is watched: the processes that answered, those that are silent, and the ended.

A process stays on the roster until the kernel says that it has ended, or until its
agent stops listening. Meanwhile a silent process is asked again, more and more rarely,
and nothing waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from poolwatch.client.calls import BRIEF_S, Calls, Outcome
from poolwatch.client.view import Memory, View, error_of, postgres_pools, utc
from poolwatch.errors import NoProcessError, SilentError
from poolwatch.model import Process, Unreachable
from poolwatch.protocol import liveness
from poolwatch.protocol.liveness import Peer, State

ENDED_S = 60.0
"""How long a process that has ended is listed while others go on."""
_KNOWN_S = 2.0
"""How long a process is waited for that has answered so far."""
_ENDING_S = 0.1
"""From the close of its socket to the end of a process that was killed."""
_MOST_LEFT = 64
_BACK_OFF_S = (1.0, 2.0, 5.0, 10.0)
_LATE = "it does not answer in time"
_WORDS: dict[State | None, str] = {
    "running": "it is alive and does not answer",
    "stopped": "it is stopped (state T) and does not answer",
    "ended": "it has ended",
    None: _LATE,
}


class Asked(Protocol):
    """What is needed of :class:`poolwatch.client.client.Client`."""

    def agents(self) -> Sequence[Any]:
        """Return where processes listen, each with its ``pid``, and ``peer`` if known.

        Raises NoProcessError if there is none.
        """
        ...

    def view(self, address: Any) -> Process:
        """Return a process's own picture; raises PoolwatchError."""
        ...


@dataclass(slots=True)
class _Watched:
    """One process, from its first refresh to its end."""

    pid: int | None
    memory: Memory = field(default_factory=Memory)
    peer: Peer | None = None
    answered_at: str | None = None
    failures: int = 0
    """Looks in a row without an answer."""
    ask_at: float = 0.0
    why: str | None = None
    """Its error, if it answered with one."""
    state: State | None = None
    """The kernel's last answer; None if it cannot see the process."""
    left_at: float = 0.0
    """When it left the roster."""
    ended: Unreachable | None = None
    """Its entry in the snapshot once it has ended."""

    def look(self) -> State | None:
        """Ask the kernel again; a process that runs again is asked at once."""
        before = self.state
        self.state = liveness.state(self.peer) if self.peer else None
        if before == "stopped" != self.state:
            self.ask_at = 0.0
        return self.state

    @property
    def patience_s(self) -> float:
        """How long to wait for an answer: less where one came quickly before."""
        if self.failures or self.state == "stopped":
            return BRIEF_S
        return float("inf") if self.answered_at is None else _KNOWN_S

    def answered(self, outcome: Outcome) -> None:
        self.failures, self.ask_at, self.why = 0, 0.0, None
        if outcome.ended is not None:
            self.answered_at = utc(time.monotonic() - outcome.ended)

    def answered_late(self, outcome: Outcome, patience_s: float) -> None:
        """Ask again at once, and with patience if it could have answered in time."""
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
        """Say why there is no picture; ``why`` if the caller knows better."""
        ended = self.state == "ended"
        why = why or (not ended and self.why) or _WORDS[self.state]
        since = utc() if ended else self.answered_at
        alive = None if self.state is None else not ended
        return Unreachable(self.pid, why, since, alive)


class Roster:
    """Asks all processes of a client for their pictures. One thread at a time."""

    def __init__(self, client: Asked, calls: Calls, patience_s: float) -> None:
        """``patience_s``: how long one that is not known to be silent may take."""
        self._client = client
        self._calls = calls
        self._patience_s = patience_s
        self._watched: dict[Any, _Watched] = {}
        self._left: list[_Watched] = []

    def call(
        self, late: Mapping[Hashable, Outcome]
    ) -> tuple[dict[Any, View], tuple[Unreachable, ...]]:
        """Return the views of those that answered, by address, and the others.

        ``late`` are answers to earlier calls. Raises NoProcessError if there is none
        and has been none, and what finding the processes raises.
        """
        try:
            addresses, error = self._client.agents(), None
        except NoProcessError as none:
            addresses, error = (), none
        for address in addresses:
            watched = self._watched.setdefault(address, _Watched(address.pid))
            watched.peer = getattr(address, "peer", None) or watched.peer
            answer = late.get(("view", address))
            if answer is not None and answer.error is None:
                watched.answered_late(answer, self._patience_s)
        lost = self._without_socket(addresses)
        views = self._ask(addresses)
        silent = self._silent(views.keys() | lost.keys())
        unreachable = (*lost.values(), *silent, *self._ended(views))
        if error is not None and not unreachable:
            raise error
        return views, unreachable

    def remember(self, address: Any, memory: Memory) -> None:
        """Keep what is to be remembered of a process until its next refresh."""
        self._watched[address].memory = memory

    def _without_socket(self, addresses: Collection[Any]) -> dict[Any, Unreachable]:
        """Processes whose socket has gone: those that still listen behind it.

        The others have ended, or have stopped being watched, and leave the roster.
        """
        found: dict[Any, Unreachable] = {}
        for address in self._watched.keys() - set(addresses):
            watched = self._watched[address]
            watched.look()
            if self._is_watched(address):
                found[address] = watched.unreachable("it is alive, its socket is gone")
            else:
                self._leave(address)
        return found

    def _is_watched(self, address: Any) -> bool:
        """Whether the process is known to be alive and to listen."""
        watched = self._watched[address]
        if watched.peer is None or watched.state in (None, "ended"):
            return False
        return liveness.listens(watched.peer, address.path)

    def _leave(self, address: Any) -> None:
        """Take a process off the roster; one that is just ending gets a moment."""
        watched = self._watched.pop(address)
        watched.left_at = time.monotonic()
        while watched.look() == "running" and (
            time.monotonic() - watched.left_at < _ENDING_S
        ):
            time.sleep(0.01)
        self._left.append(watched)

    def _ask(self, addresses: Sequence[Any]) -> dict[Any, View]:
        for address in addresses:
            self._watched[address].look()
        now = time.monotonic()
        due = [a for a in addresses if self._watched[a].ask_at <= now]
        outcomes = self._calls.run(
            {("view", a): partial(self._client.view, a) for a in due},
            self._patience_s,
            limits={("view", a): self._watched[a].patience_s for a in due},
        )
        views: dict[Any, View] = {}
        for address in due:
            watched, outcome = self._watched[address], outcomes["view", address]
            if error_of(outcome, _LATE) is not None or outcome.ended is None:
                watched.failed(outcome)
                continue
            watched.answered(outcome)
            process: Process = outcome.value
            views[address] = View(
                process,
                outcome.began,
                outcome.ended,
                watched.memory,
                postgres_pools(process),
            )
        return views

    def _silent(self, others: Collection[Any]) -> list[Unreachable]:
        """All but the ``others``, and none that has ended or listens no more."""
        found = []
        for address in [each for each in self._watched if each not in others]:
            watched = self._watched[address]
            state = watched.look()
            left = watched.why and state and not self._is_watched(address)
            if state == "ended" or left:
                self._leave(address)
            else:
                found.append(watched.unreachable())
        return found

    def _ended(self, views: Collection[Any]) -> list[Unreachable]:
        """Those that ended a moment ago; all of them while no other one answers."""
        if views:
            after = time.monotonic() - ENDED_S
            self._left = [each for each in self._left if each.left_at > after]
        del self._left[:-_MOST_LEFT]
        for watched in self._left:
            if watched.ended is None and watched.look() == "ended":
                watched.ended = watched.unreachable()
        return [watched.ended for watched in self._left if watched.ended]
