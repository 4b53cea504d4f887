"""The state of the dashboard: the data, and what the user wants to see of it.

Readings and keys change a board, the screens draw it. No Textual here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Literal

from poolwatch.model import (
    Finding,
    Frozen,
    Process,
    Snapshot,
    Unreachable,
    severity_rank,
)
from poolwatch.text.naming import process_name, with_names
from poolwatch.tui.polling import Incidents, Mode, Reading
from poolwatch.tui.state.filtering import Filter
from poolwatch.tui.state.rows import SORTS, Key, Row, Sort, build, ordered
from poolwatch.tui.state.selection import Selection

TICKS = 30
"""Readings a sparkline remembers."""

PoolKey = tuple[int, str]


@dataclass(frozen=True, slots=True)
class LastSeen:
    """A process as it was when it last answered."""

    process: Process
    asked_at: float


Ending = Literal["returned", "ended", "gone"]
"""How a hold ended: it was returned, its process ended, or that is unknown."""


@dataclass(slots=True)
class Board:
    """The state that all panels are drawn from."""

    refresh: float = 1.0
    empty_hint: str = ""
    last: Reading | None = None
    """The newest answer, good or bad."""
    last_good: Reading | None = None
    """The newest answer with a process in it: what the screen shows."""
    paused: bool = False
    sort: Sort = "harm"
    filter: Filter = field(default_factory=Filter)
    selection: Selection = field(default_factory=Selection)
    rows: dict[Key, Row] = field(default_factory=dict)
    """Every hold on the screen."""
    names: dict[int, str] = field(default_factory=dict)
    """By pid: names of the processes, with those that ended lately."""
    silent: dict[int, LastSeen] = field(default_factory=dict)
    """By pid: processes that do not answer and are shown as they were last seen."""
    history: dict[PoolKey, deque[int]] = field(default_factory=dict)
    hidden: int = 0
    """Rows the filter hides."""
    unfold: bool = False
    """Whether library frames are shown."""
    incident: Frozen | None = None
    """The incident snapshot that is shown; None if it is the present."""
    incidents: Incidents | None = None
    """The incident snapshots as last read; None while the answer is awaited."""

    @property
    def snapshot(self) -> Snapshot:
        """The data on the screen."""
        good = self.last_good.snapshot if self.last_good else None
        return good or (self.last.snapshot if self.last else None) or Snapshot()

    @property
    def error(self) -> str | None:
        """Why the newest reading failed, if it did."""
        return self.last.error if self.last else None

    def age(self, now: float) -> float:
        """The least age of the data on the screen, in seconds."""
        shown = self.last_good or self.last
        return now - shown.asked_at if shown else 0.0

    def mode(self, now: float) -> Mode:
        """How far the data on the screen can be trusted, in one word."""
        last = self.last
        if self.incident is not None:
            return "frozen"
        if last is None:
            return "starting"
        if self.paused:
            return "paused"
        if last.alive:
            late = self.age(now) > self.refresh + max(2.0, self.refresh)
            return "stale" if late else "live"
        if last.error is not None and not last.no_process:
            return "failed"
        ended: Mode = "none" if self.last_good is None else "lost"
        return "silent" if last.silent else ended

    def take(self, reading: Reading, now: float) -> None:
        """Accept an answer of the source; a bad one leaves the data as it was.

        A process that is silent stays as it was last seen, until it answers or has
        ended.
        """
        self.last = reading
        if reading.snapshot is not None:
            processes = tuple(map(with_names, reading.snapshot.processes))
            snapshot = replace(reading.snapshot, processes=processes)
            silent = self._still_silent(reading)
            if reading.alive or silent:
                self.silent = silent
                self._show(reading, snapshot)
        self.arrange(now)

    def _still_silent(self, reading: Reading) -> dict[int, LastSeen]:
        """The processes seen so far that do not answer now."""
        assert reading.snapshot is not None  # the caller has looked
        answered = {process.pid for process in reading.snapshot.processes}
        seen = dict(self.silent)
        if self.last_good is not None and self.last_good.snapshot is not None:
            for process in self.last_good.snapshot.processes:
                seen.setdefault(process.pid, LastSeen(process, self.last_good.asked_at))
        lost = {each.pid for each in reading.silent} - answered
        return {pid: each for pid, each in seen.items() if pid in lost}

    def _show(self, reading: Reading, snapshot: Snapshot) -> None:
        """Show the reading, and silent processes as they were last seen."""
        before = [_without_server(each.process) for each in self.silent.values()]
        both = sorted((*snapshot.processes, *before), key=lambda process: process.pid)
        if before:
            snapshot = replace(snapshot, processes=tuple(both))
        old = self.last_good if not reading.alive and self.last_good else reading
        self.last_good = replace(reading, asked_at=old.asked_at, snapshot=snapshot)
        self.rows = {row.key: row for row in build(snapshot)}
        self._extend_history(snapshot)
        lost = {each.pid for each in snapshot.unreachable}
        self.names = {pid: name for pid, name in self.names.items() if pid in lost}
        self.names |= {each.pid: process_name(each) for each in both}

    def ending(self, row: Row) -> Ending:
        """How a hold ended that is no longer among the rows."""
        for process in self.snapshot.processes:
            if process.pid == row.process.pid not in self.silent:
                same = process.started_at == row.process.started_at
                return "returned" if same else "ended"
        last = self.last.snapshot if self.last else None
        ended = [
            each.pid for each in (last.unreachable if last else ()) if not each.alive
        ]
        return "ended" if row.process.pid in ended else "gone"

    def name_of(self, lost: Unreachable) -> str:
        """Name and pid of a process that does not answer, as far as they are known."""
        if lost.pid is None:
            return "a process"
        return f"{self.names.get(lost.pid, 'process')} {lost.pid}"

    def last_seen(self, pid: int, now: float | None = None) -> float | None:
        """Seconds since a silent process last answered; None for the others.

        Without ``now``, as of the newest reading.
        """
        seen = self.silent.get(pid)
        if seen is None or self.last is None:
            return None
        return (self.last.asked_at if now is None else now) - seen.asked_at

    def arrange(self, now: float) -> None:
        """Filter and sort the rows, and let the selection find its hold."""
        shown = [row for row in self.rows.values() if self.filter(row)]
        self.hidden = len(self.rows) - len(shown)
        self.selection.follow(ordered(shown, self.sort), self.rows.keys(), now)

    def cycle_sort(self) -> None:
        """Sort by the next key."""
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]

    def _extend_history(self, snapshot: Snapshot) -> None:
        past, self.history = self.history, {}
        for process in snapshot.processes:
            for pool in process.pools:
                key = (process.pid, pool.id)
                self.history[key] = past.get(key) or deque(maxlen=TICKS)
                if process.pid not in self.silent:
                    self.history[key].append(pool.checked_out)

    def findings(self) -> list[tuple[Process, Finding]]:
        """Everything that is wrong, the worst first."""
        found = [(p, f) for p in self.snapshot.processes for f in p.findings]
        return sorted(found, key=lambda pair: _rank(pair[1]))


def _without_server(process: Process) -> Process:
    """Take away what is out of date when a process is silent: the server's state."""
    findings = tuple(f for f in process.findings if f.kind != "server_down")
    servers = tuple(replace(status, down=None) for status in process.servers)
    return replace(process, findings=findings, servers=servers)


def _rank(finding: Finding) -> tuple[bool, int]:
    """A server that is down comes first: it may have caused the others."""
    return finding.kind != "server_down", severity_rank(finding.severity)
