"""The state of the dashboard: data, and the user's sort order, filter and selection.

Readings and keys change a board; the screens draw it. This module is independent of
Textual.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal

from poolwatch.diagnosis.finding_history import Entry, FindingHistory, entries_at
from poolwatch.diagnosis.merging import Key as FindingKey
from poolwatch.diagnosis.merging import Merged, merged
from poolwatch.diagnosis.sessions import Key as SessionKey
from poolwatch.diagnosis.sessions import Session, server_of
from poolwatch.errors import RefusedError
from poolwatch.model import (
    Incident,
    IncidentSnapshot,
    Process,
    ServerStatus,
    Snapshot,
    Unreachable,
)
from poolwatch.model.actions import Chosen
from poolwatch.text.format import since_epoch
from poolwatch.text.naming import process_name, with_names
from poolwatch.tui.polling import Incidents, Mode, Reading
from poolwatch.tui.state.chosen import chosen
from poolwatch.tui.state.filtering import Filter
from poolwatch.tui.state.rows import (
    Key,
    ProcessKey,
    Row,
    build,
    by_harm,
    hold_key,
    process_key,
)
from poolwatch.tui.state.session_rows import SessionRow, session_rows
from poolwatch.tui.state.table_state import TableState
from poolwatch.tui.state.trees import Trees

_REVISIONS = count(1)
"""Boards share tables, and no number of a revision: rows are arranged for one board."""
HISTORY = 30
"""Readings that a sparkline shows."""

PoolKey = tuple[ProcessKey, str]
"""The process, and the id of the pool."""


@dataclass(frozen=True, slots=True)
class LastSeen:
    """A process as it was when it last answered."""

    process: Process
    requested_at: float


Ending = Literal["returned", "ended", "gone"]
"""How a hold ended: returned, with its process, or unknown."""


@dataclass(slots=True)
class Board:
    """The state that all panels are drawn from."""

    refresh: float = 1.0
    empty_hint: str = ""
    last: Reading | None = None
    """The newest reading, good or bad."""
    last_good: Reading | None = None
    """The newest reading with a process: the data on the screen."""
    paused: bool = False
    view: str = "holds"
    """Name of the view on the screen."""
    filter: Filter = field(default_factory=Filter)
    """Applies to every view."""
    tables: dict[str, TableState] = field(default_factory=dict)
    """By name of the view: its order and selection."""
    drills: list[tuple[str, Filter]] = field(default_factory=list)
    """The views and filters that Enter has led away from; escape leads back."""
    revision: int = 0
    """Changes with the data: what is computed from it holds for one revision."""
    rows: dict[Key, Row] = field(default_factory=dict)
    """Every hold, the most harmful first."""
    trees: Trees = field(default_factory=lambda: Trees(Snapshot()))
    """Who waits for whom."""
    names: dict[int, str] = field(default_factory=dict)
    """By pid: names of the processes, including recently ended ones."""
    silent: dict[ProcessKey, LastSeen] = field(default_factory=dict)
    """Processes that do not answer, with their last known state."""
    several_processes: bool = False
    """Whether some reading had several: columns that come and go are hard to read."""
    several_pools: bool = False
    history: dict[PoolKey, deque[int]] = field(default_factory=dict)
    findings: list[Merged] = field(default_factory=list)
    """What is wrong in the data on the screen, the cause first."""
    found: FindingHistory = field(default_factory=FindingHistory)
    """The findings of the last ten minutes of live data."""
    entries_then: dict[FindingKey, Entry] = field(default_factory=dict)
    """In the past: what is known of its findings over time."""
    unfold: bool = False
    """Whether library frames are shown."""
    fixed: Literal["saved", "past"] | None = None
    """What the board shows instead of the newest reading: a saved moment, or one that
    the user has gone back to."""
    behind_s: float = 0.0
    """Seconds between that moment and now."""
    incident: IncidentSnapshot | None = None
    """The incident snapshot that is shown, a saved moment."""
    incidents: Incidents | None = None
    """The incident snapshots as last read; None while a request is pending."""
    counts: dict[str, tuple[int, tuple[str, str]]] = field(
        default_factory=dict, init=False
    )
    """By view: what the tab line says of it, and for which revision."""
    _sessions: dict[SessionKey, SessionRow] | None = field(default=None, init=False)
    """What ``sessions`` returns, once it was asked for."""
    _named: dict[Key, list[str]] = field(default_factory=dict, init=False)
    _named_for: int | None = field(default=None, init=False)
    """The revision that ``_named`` is of."""

    @property
    def sessions(self) -> dict[SessionKey, SessionRow]:
        """Every session that is known of, the most harmful first."""
        if self._sessions is None:
            self._sessions = session_rows(self.snapshot, self.trees, self.rows)
        return self._sessions

    @property
    def snapshot(self) -> Snapshot:
        """The data on the screen."""
        good = self.last_good.snapshot if self.last_good else None
        return good or (self.last.snapshot if self.last else None) or Snapshot()

    @property
    def moment(self) -> str | None:
        """ISO 8601: when it was as it is on the screen; None if now."""
        return self.incident.at if self.incident is not None else self.snapshot.at

    @property
    def error(self) -> str | None:
        """Why the newest reading failed, if it did."""
        return self.last.error if self.last else None

    def clock(self, now: float, wall: float) -> float:
        """Return the time that ages are counted to: it stands still in the past.

        ``wall``: the seconds since the epoch.
        """
        if self.fixed is None or self.last is None:
            return now
        self.behind_s = wall - self.last.at
        return self.last.requested_at

    def age(self, now: float) -> float:
        """Return the minimum age of the data on the screen, in seconds."""
        shown = self.last_good or self.last
        return now - shown.requested_at if shown else 0.0

    def mode(self, now: float) -> Mode:
        """Return how current the data on the screen is."""
        last = self.last
        if self.fixed is not None:
            return self.fixed
        if last is None:
            return "starting"
        if self.paused:
            return "paused"
        if last.alive:
            late = self.age(now) > self.refresh + max(2.0, self.refresh)
            current: Mode = "live" if self.snapshot.at is None else "history"
            return "stale" if late else current
        if last.failed:
            return "failed"
        ended: Mode = "none" if self.last_good is None else "lost"
        return "silent" if last.silent else ended

    def is_outdated(self, now: float) -> bool:
        """Whether the data on the screen is older than it should be."""
        return self.mode(now) in ("stale", "failed", "silent", "lost")

    def accept(self, reading: Reading) -> None:
        """Accept a reading; a failed one does not change the data.

        A silent process is shown in its last known state until it answers or has ended.
        """
        self.last = reading
        self.revision = next(_REVISIONS)
        if not reading.alive and not reading.silent and not reading.failed:
            # all have ended: the rest is shown as last seen
            self.findings = [f for f in self.findings if f.kind != "unreachable"]
            if self.moment is None:
                self.found.update(reading.snapshot or Snapshot(), reading.at)
        if reading.snapshot is not None:
            processes = tuple(map(with_names, reading.snapshot.processes))
            silent = self._still_silent(reading)
            if reading.alive or silent:
                self.silent = silent
            unreachable = tuple(map(self._as_seen, reading.snapshot.unreachable))
            snapshot = replace(
                reading.snapshot, processes=processes, unreachable=unreachable
            )
            if reading.alive or silent:
                self._show(reading, snapshot)
            elif reading.silent:
                self._find(reading, snapshot)

    def show_moment(
        self, snapshot: Snapshot, incidents: Iterable[Incident] = ()
    ) -> None:
        """Show a moment of the past: its silent processes are as they were last seen.

        Ages are counted to the moment. ``incidents``: what is known of its findings
        over time.
        """
        at = since_epoch(snapshot.at) or 0.0
        lost = Reading(at, snapshot).silent
        self.silent, self.history, self.names = {}, {}, {}
        self.last_good, self.rows = None, {}
        for process in map(with_names, snapshot.processes):
            since = [each.since for each in lost if each.may_be(process)]
            if since:
                seen = LastSeen(process, since_epoch(since[0]) or at)
                self.silent[process_key(process)] = seen
        answered = [p for p in snapshot.processes if process_key(p) not in self.silent]
        moment = replace(snapshot, processes=tuple(answered))
        self.accept(Reading(at, moment, at=at))
        self.entries_then = entries_at(self.findings, incidents, at)

    def at_another_moment(self) -> Board:
        """Return a board for the past, with the views, filter and selection of this.

        It shows the same data until show_moment().
        """
        return replace(self, fixed="past", drills=list(self.drills))

    def look_as(self, other: Board) -> None:
        """Take over view, filter, and what else keys have set on another board."""
        self.view, self.filter, self.unfold = other.view, other.filter, other.unfold

    def recorded(self) -> Snapshot | None:
        """Return the newest reading, with the last known state of silent processes.

        None if the reading has failed, so that nothing is known of this moment.
        """
        if self.last is None or (self.last.error and not self.last.no_process):
            return None
        if self.last_good is not None and (self.last.alive or self.silent):
            return self.last_good.snapshot
        return self.last.snapshot or Snapshot()

    def _still_silent(self, reading: Reading) -> dict[ProcessKey, LastSeen]:
        """Return the known processes that do not answer now."""
        assert reading.snapshot is not None  # checked by the caller
        answered = set(map(process_key, reading.snapshot.processes))
        seen = dict(self.silent)
        if self.last_good is not None and self.last_good.snapshot is not None:
            for process in self.last_good.snapshot.processes:
                known = LastSeen(process, self.last_good.requested_at)
                seen.setdefault(process_key(process), known)
        return {
            key: each
            for key, each in seen.items()
            if key not in answered
            and any(lost.may_be(each.process) for lost in reading.silent)
        }

    def _show(self, reading: Reading, snapshot: Snapshot) -> None:
        """Show the reading, and silent processes in their last known state."""
        read = {
            server_of(process, status)
            for process in snapshot.processes
            for status in process.servers
            if status.error is None
        }
        silent = [_without_server(s.process, read) for s in self.silent.values()]
        shown = sorted((*snapshot.processes, *silent), key=lambda process: process.pid)
        if silent:
            snapshot = replace(snapshot, processes=tuple(shown))
        old = self.last_good if not reading.alive and self.last_good else reading
        self.last_good = replace(
            reading, requested_at=old.requested_at, snapshot=snapshot
        )
        self.trees = Trees(snapshot)
        self.rows = {
            row.key: row for row in sorted(build(snapshot, self.trees), key=by_harm)
        }
        self._sessions = None
        self.several_processes |= len(shown) > 1
        names = {pool.name for process in shown for pool in process.pools}
        self.several_pools |= len(names) > 1
        self._extend_history(snapshot)
        self._find(reading, snapshot)
        lost = {each.pid for each in snapshot.unreachable}
        self.names = {pid: name for pid, name in self.names.items() if pid in lost}
        self.names |= {each.pid: process_name(each) for each in shown}

    def _find(self, reading: Reading, snapshot: Snapshot) -> None:
        """Merge the findings; follow them over time unless they are of the past."""
        if self.moment is None:
            self.findings = self.found.update(snapshot, reading.at)
        else:
            self.findings = merged(snapshot)

    def findings_of(self, hold: Key) -> Sequence[str]:
        """Return kinds and names of the findings that are about a hold."""
        if self._named_for != self.revision:
            self._named_for, self._named = self.revision, {}
            for finding in self.findings:
                names = finding.kind, str(finding.key)
                for process, each in finding.holds:
                    self._named.setdefault(hold_key(process, each.id), []).extend(names)
        return self._named.get(hold, ())

    def entry(self, finding: Merged) -> Entry | None:
        """Return what is known of a finding over time."""
        if self.moment is not None:
            return self.entries_then.get(finding.key)
        return self.found.of(finding.key)

    def ending(self, row: Row) -> Ending:
        """Return how a hold ended that has no row any more."""
        for process in self.snapshot.processes:
            if (process.host, process.pid) != (row.process.host, row.process.pid):
                continue
            if process_key(process) not in self.silent:
                same = process.started_at == row.process.started_at
                return "returned" if same else "ended"
        last = self.last.snapshot if self.last else None
        ended = [
            each.pid for each in (last.unreachable if last else ()) if not each.alive
        ]
        return "ended" if row.process.pid in ended else "gone"

    def chosen(self, session: Session, server: ServerStatus | None) -> Chosen:
        """Describe a session for an action; raises RefusedError if it is not proven."""
        reading, process = self.last_good, session.process
        if self.fixed is not None:
            raise RefusedError("an action needs the present: this is the past")
        if process is not None and process_key(process) in self.silent:
            raise RefusedError("its process does not answer: it is shown as last seen")
        if reading is None or reading.answered_at is None:
            raise RefusedError(
                "there is no reading that could prove which session it is"
            )
        seen = reading.requested_at, reading.answered_at
        return chosen(session, server, self.snapshot, seen)

    def name_of(self, lost: Unreachable) -> str:
        """Return name and pid of a process that does not answer, if known."""
        if lost.pid is None:
            return "a process"
        name = lost.name or self.names.get(lost.pid, "process")
        return f"{name} {lost.pid}"

    def last_seen(self, key: ProcessKey, now: float | None = None) -> float | None:
        """Return the seconds since a process last answered; None if it has just now.

        The default of ``now`` is the time of the newest reading.
        """
        last, seen = self.last, self.silent.get(key)
        if last is None or last.alive or self.fixed is not None:
            known = None if seen is None else seen.requested_at
        else:  # all have ended, or no reading has come
            known = (seen or self.last_good or last).requested_at
        if last is None or known is None:
            return None
        return (last.requested_at if now is None else now) - known

    def _extend_history(self, snapshot: Snapshot) -> None:
        past, self.history = self.history, {}
        for process in snapshot.processes:
            for pool in process.pools:
                key = process_key(process), pool.id
                self.history[key] = past.get(key) or deque(maxlen=HISTORY)
                if process_key(process) not in self.silent:
                    self.history[key].append(pool.checked_out)

    def _as_seen(self, lost: Unreachable) -> Unreachable:
        """Return a silent process, with what this board has seen of it."""
        silent_s = lost.silent_s
        if silent_s is None:
            seen = (k for k, each in self.silent.items() if lost.may_be(each.process))
            silent_s = next(map(self.last_seen, seen), None)
        name = lost.name or self.names.get(lost.pid or 0)
        return replace(lost, name=name, silent_s=silent_s)


def _without_server(process: Process, read: Collection[str]) -> Process:
    """Remove the server state, which is outdated for a silent process.

    ``read``: the servers whose sessions another process has reported.
    """
    findings = tuple(f for f in process.findings if f.kind != "server_down")
    servers = tuple(
        replace(status, down=None, others=(), left_out=0)
        if server_of(process, status) in read
        else replace(status, down=None)
        for status in process.servers
    )
    return replace(process, findings=findings, servers=servers)
