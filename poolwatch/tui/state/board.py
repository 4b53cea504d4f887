"""What the dashboard knows between two frames: the data, and what the user asked for.

No Textual here. The screens draw a board; keys and readings change it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from poolwatch.model import Finding, Frozen, Process, Snapshot, severity_rank
from poolwatch.text.naming import process_name, with_names
from poolwatch.tui.reading import Mode, Reading, freshness
from poolwatch.tui.state.filtering import Filter
from poolwatch.tui.state.rows import SORTS, Key, Row, Sort, build, ordered
from poolwatch.tui.state.selection import Selection

if TYPE_CHECKING:
    from poolwatch.tui.album import Album

TICKS = 30
"""Readings a sparkline remembers."""

PoolKey = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as it was when it last answered."""

    process: Process
    asked_at: float


Parting = Literal["returned", "ended", "gone"]
"""What became of a hold: it came back, its process has ended, or that is not known."""


@dataclass(slots=True)
class Board:
    """The state that all panels are drawn from."""

    refresh: float = 1.0
    empty_hint: str = ""
    last: Reading | None = None
    """The newest answer, good or bad."""
    kept: Reading | None = None
    """The newest answer with a process in it."""
    paused: bool = False
    sort: Sort = "harm"
    filter: Filter = field(default_factory=Filter)
    selection: Selection = field(default_factory=Selection)
    rows: dict[Key, Row] = field(default_factory=dict)
    """Every hold of the kept reading."""
    names: dict[int, str] = field(default_factory=dict)
    """By pid: what processes are called, those among them that have ended of late."""
    silent: dict[int, Seen] = field(default_factory=dict)
    """By pid: processes that are shown as last seen, because they do not answer."""
    history: dict[PoolKey, deque[int]] = field(default_factory=dict)
    hidden: int = 0
    """Rows the filter hides."""
    unfold: bool = False
    """Whether library frames are shown."""
    past: Frozen | None = None
    """The picture that is shown, if it is not the present."""
    album: Album | None = None
    """The kept pictures, when they were last asked for; None while they are awaited."""

    @property
    def snapshot(self) -> Snapshot:
        """The data on the screen."""
        kept = self.kept.snapshot if self.kept else None
        return kept or (self.last.snapshot if self.last else None) or Snapshot()

    @property
    def error(self) -> str | None:
        """Why the newest reading failed, if it did."""
        return self.last.error if self.last else None

    def age(self, now: float) -> float:
        """How old the data on the screen is at least."""
        kept = self.kept or self.last
        return now - kept.asked_at if kept else 0.0

    def mode(self, now: float) -> Mode:
        """Say in one word how far the screen can be trusted."""
        if self.past is not None:
            return "frozen"
        return freshness(self.last, self.kept, self.age(now), self.refresh, self.paused)

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
                self._keep(reading, snapshot)
        self.settle(now)

    def _still_silent(self, reading: Reading) -> dict[int, Seen]:
        """Those of the processes seen so far that give no answer now."""
        assert reading.snapshot is not None  # the caller has looked
        answered = {process.pid for process in reading.snapshot.processes}
        seen = dict(self.silent)
        if self.kept is not None and self.kept.snapshot is not None:
            for process in self.kept.snapshot.processes:
                seen.setdefault(process.pid, Seen(process, self.kept.asked_at))
        lost = {each.pid for each in reading.silent} - answered
        return {pid: each for pid, each in seen.items() if pid in lost}

    def _keep(self, reading: Reading, snapshot: Snapshot) -> None:
        """Show what was read, and the silent processes as they were last seen."""
        before = [_without_server(each.process) for each in self.silent.values()]
        both = sorted((*snapshot.processes, *before), key=lambda process: process.pid)
        if before:
            snapshot = replace(snapshot, processes=tuple(both))
        old = self.kept if not reading.alive and self.kept else reading
        self.kept = replace(reading, asked_at=old.asked_at, snapshot=snapshot)
        self.rows = {row.key: row for row in build(snapshot)}
        self._remember(snapshot)
        lost = {each.pid for each in snapshot.unreachable}
        self.names = {pid: name for pid, name in self.names.items() if pid in lost}
        self.names |= {each.pid: process_name(each) for each in both}

    def parting(self, row: Row) -> Parting:
        """Say what became of a hold that is no longer among the rows."""
        for process in self.snapshot.processes:
            if process.pid == row.process.pid not in self.silent:
                same = process.started_at == row.process.started_at
                return "returned" if same else "ended"
        last = self.last.snapshot if self.last else None
        ended = [
            each.pid for each in (last.unreachable if last else ()) if not each.alive
        ]
        return "ended" if row.process.pid in ended else "gone"

    def last_seen(self, pid: int, now: float | None = None) -> float | None:
        """Give the age of what is shown of a silent process; None for the others.

        Without ``now`` it is that of the newest reading.
        """
        seen = self.silent.get(pid)
        if seen is None or self.last is None:
            return None
        return (self.last.asked_at if now is None else now) - seen.asked_at

    def settle(self, now: float) -> None:
        """Filter and sort anew, and let the selection find its hold."""
        shown = [row for row in self.rows.values() if self.filter(row)]
        self.hidden = len(self.rows) - len(shown)
        self.selection.follow(ordered(shown, self.sort), self.rows.keys(), now)

    def cycle_sort(self) -> None:
        """Take the next sort key."""
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]

    def _remember(self, snapshot: Snapshot) -> None:
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
    """A silent process cannot tell how its server is by now."""
    findings = tuple(f for f in process.findings if f.kind != "server_down")
    servers = tuple(replace(status, down=None) for status in process.servers)
    return replace(process, findings=findings, servers=servers)


def _rank(finding: Finding) -> tuple[bool, int]:
    """A server that does not answer comes before all that it may have caused."""
    return finding.kind != "server_down", severity_rank(finding.severity)
