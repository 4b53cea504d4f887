"""The rows of processes, also of silent and ended ones, and of their servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from poolwatch.diagnosis.sessions import server_of
from poolwatch.model import (
    Hold,
    PoolStats,
    Process,
    ServerStatus,
    Unreachable,
    Wait,
    severity_rank,
)
from poolwatch.text.format import clock, duration, since_epoch
from poolwatch.text.naming import process_name
from poolwatch.tui.draw.line import Run
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import process_key


@dataclass(frozen=True, slots=True, eq=False)
class ProcessRow:
    """A process as it last answered; or several of one name and host."""

    key: Any
    board: Board
    pid: int | None
    name: str
    host: str
    processes: tuple[Process, ...]
    """Empty if this dashboard has had no answer."""
    lost: Unreachable | None
    """If it did not answer now: why."""
    findings: frozenset[int] = frozenset()
    """The numbers of those that it is part of: equal ones are one, as in view 6."""
    count: int = 1

    @property
    def is_ended(self) -> bool:
        """Whether it is known to have ended."""
        return self.lost is not None and self.lost.alive is False

    @property
    def is_silent(self) -> bool:
        """Whether it gives no answer, and is not known to have ended."""
        return self.lost is not None and self.lost.alive is not False

    @property
    def pools(self) -> list[PoolStats]:
        """Its pools; one over another pool has no connections of its own."""
        return [pool for each in self.processes for pool in each.pools if not pool.over]

    @property
    def holds(self) -> list[Hold]:
        """Its open holds."""
        return [hold for each in self.processes for hold in each.holds]

    @property
    def waits(self) -> list[Wait]:
        """Its requests that wait for a connection."""
        return [wait for each in self.processes for wait in each.waits]

    @property
    def out(self) -> int:
        """Connections that are out."""
        return sum(pool.out for pool in self.pools)

    @property
    def capacity(self) -> int | None:
        """The most connections that may be out; None without a limit."""
        return capacity(self.pools)

    @property
    def oldest_s(self) -> float | None:
        """For how long the longest of its holds is out."""
        return max((hold.known_s for hold in self.holds), default=None)

    @property
    def worst(self) -> int:
        """Rank of the most severe of its findings; a high number without any."""
        findings = (each for process in self.processes for each in process.findings)
        return min((severity_rank(each.severity) for each in findings), default=9)

    @property
    def up_s(self) -> float | None:
        """Seconds since it was started; since the first of several was."""
        last = self.board.last
        if self.is_ended or last is None or not self.processes:
            return None
        moment = self.board.moment
        now = last.at if moment is None else since_epoch(moment)
        started = [since_epoch(each.started_at) for each in self.processes]
        return None if now is None else max(now - (at or now) for at in started)

    @property
    def silent_s(self) -> float | None:
        """Seconds since its last answer, if it is silent."""
        lost = self.lost
        if lost is None or lost.silent_s is not None or not self.processes:
            return lost.silent_s if lost else None
        return self.board.last_seen(process_key(self.processes[0]))

    @property
    def answers(self) -> Run:
        """When it answered, or why it has not, in a few words."""
        if self.lost is not None:
            return _no_answer(self.lost, self.silent_s)
        last, good = self.board.last, self.board.last_good
        if self.board.moment is not None or last is None or good is None:
            at = self.processes[0].at if self.processes else None
            return (clock(at), "text") if at else ("-", "faint")
        age = (last.answered_at or last.requested_at) - good.requested_at
        return (
            (duration(age), "text") if last.alive else (f"{duration(age)} ago", "warn")
        )


def _no_answer(lost: Unreachable, silent_s: float | None) -> Run:
    if lost.alive is False:
        return f"ended at {clock(lost.since or '')}", "muted"
    if "socket" in lost.why:
        return "socket gone", "bad"
    state = "stopped" if "stopped" in lost.why else "silent"
    return state if silent_s is None else f"{state} {duration(silent_s)}", "bad"


@dataclass(frozen=True, slots=True, eq=False)
class ServerLine:
    """A server, with the pools that are connected to it."""

    key: Any
    status: ServerStatus
    """The one that knows most."""
    pools: tuple[PoolStats, ...]
    processes: int

    @property
    def limit(self) -> int | None:
        """The connections that ordinary roles may have."""
        most = self.status.max_connections
        return None if most is None else most - (self.status.reserved or 0)

    @property
    def capacity(self) -> int | None:
        """The most connections that its pools may open; None without a limit."""
        return capacity([pool for pool in self.pools if not pool.over])

    @property
    def is_short(self) -> bool:
        """Whether its pools may open more connections than it has."""
        if self.limit is None:
            return False
        return self.capacity is None or self.capacity > self.limit


def capacity(pools: Sequence[PoolStats]) -> int | None:
    """Return the most connections of all pools together; None without a limit."""
    each = [pool.capacity for pool in pools]
    known = [number for number in each if number is not None]
    return sum(known) if len(known) == len(each) else None


def process_rows(board: Board) -> list[ProcessRow]:
    """Return a row for each process: silent ones, then by harm; ended ones last."""
    last = board.last.snapshot if board.last else None
    answered = set(map(process_key, last.processes if last else ()))
    lost = list(last.unreachable if last else ())
    findings: dict[tuple[str, int], set[int]] = {}
    for number, finding in enumerate(board.findings):
        for name in finding.processes:
            findings.setdefault((name.host, name.pid), set()).add(number)
    rows = []
    for process in board.snapshot.processes:
        found = None
        if process_key(process) not in answered:
            found = next((each for each in lost if each.may_be(process)), None)
        if found is not None:
            lost.remove(found)
        rows.append(
            ProcessRow(
                process_key(process),
                board,
                process.pid,
                process_name(process),
                process.host,
                (process,),
                found,
                frozenset(findings.get((process.host, process.pid), ())),
            )
        )
    rows += [
        ProcessRow(
            ("?", each.pid, each.started_at),
            board,
            each.pid,
            each.name or board.names.get(each.pid or 0, "process"),
            each.host or "?",
            (),
            each,
        )
        for each in lost
    ]
    return sorted(rows, key=_by_harm)


def _by_harm(row: ProcessRow) -> tuple[Any, ...]:
    rank = (row.is_ended, not row.is_silent, -len(row.waits), row.worst)
    return *rank, -row.out, row.host, row.pid or 0


def by_name(rows: Iterable[ProcessRow]) -> list[ProcessRow]:
    """Merge the processes of one name on one host that are in the same state."""
    groups: dict[Any, list[ProcessRow]] = {}
    for row in rows:
        app = row.processes[0].name or row.processes[0].program if row.processes else ""
        name, state = app or row.name, (row.is_silent, row.is_ended)
        groups.setdefault((name, row.host, state), []).append(row)
    return [
        group[0]
        if len(group) == 1
        else replace(
            group[0],
            key=key,
            pid=None,
            name=key[0],
            processes=tuple([each for row in group for each in row.processes]),
            findings=frozenset([each for row in group for each in row.findings]),
            count=len(group),
        )
        for key, group in groups.items()
    ]


def server_lines(board: Board) -> list[ServerLine]:
    """Return a row for each server; one that is down comes first."""
    statuses: dict[str, list[ServerStatus]] = {}
    pools: dict[str, list[PoolStats]] = {}
    owners: dict[str, set[Any]] = {}
    for process in board.snapshot.processes:
        for status in process.servers:
            key = server_of(process, status)
            statuses.setdefault(key, []).append(status)
            owners.setdefault(key, set()).add(process_key(process))
            of_it = [pool for pool in process.pools if pool.id in status.pools]
            pools.setdefault(key, []).extend(of_it)
    lines = [
        ServerLine(
            ("server", key),
            min(each, key=_worst_status),
            tuple(pools[key]),
            len(owners[key]),
        )
        for key, each in statuses.items()
    ]
    return sorted(lines, key=lambda line: (_worst_status(line.status), str(line.key)))


def _worst_status(status: ServerStatus) -> tuple[bool, bool, bool]:
    return status.down is None, status.error is None, status.version is None


def figure(of: Callable[[ProcessRow], Any]) -> Callable[[Any], Any]:
    """Return a figure of processes; servers have none."""
    return lambda row: of(row) if isinstance(row, ProcessRow) else None
