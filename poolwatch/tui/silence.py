"""Words for processes that do not answer, and for those that have ended."""

from __future__ import annotations

from poolwatch.model import Unreachable
from poolwatch.text import clock, duration, one_line, plural
from poolwatch.tui.board import Board
from poolwatch.tui.filtering import process_name


def silent(board: Board, now: float) -> list[str]:
    """Give a sentence for each process that does not answer."""
    reading = board.last
    return [_silent(board, each, now) for each in (reading.silent if reading else ())]


def _silent(board: Board, lost: Unreachable, now: float) -> str:
    age = board.last_seen(lost.pid or 0, now)
    why = lost.why.removeprefix("it ")
    since = "" if age is None else f" for {duration(age)}; it is shown as last seen"
    if "answer" not in why and since:
        since = f"; it is shown as last seen {duration(age)} ago"
    return one_line(f"{_name(board, lost)} {why}{since}")


def ended(board: Board) -> str:
    """Say which processes have ended, and when, if none is left."""
    snapshot = board.last.snapshot if board.last else None
    gone = [each for each in (snapshot.unreachable if snapshot else ()) if each.since]
    if not gone:
        return "no process is watched any more; this is what was last seen"
    last = max(gone, key=lambda each: each.since or "")
    at = clock(last.since or "")
    if len(gone) == 1:
        text = f"{_name(board, last)} ended at {at}; this is its last reading"
    else:
        text = (
            f"{plural(len(gone), 'process').replace('processs', 'processes')} ended, "
            f"{_name(board, last)} at {at} as the last; these are their last readings"
        )
    return one_line(text)


def _name(board: Board, lost: Unreachable) -> str:
    """Name and pid, as far as they are known."""
    for process in board.snapshot.processes:
        if process.pid == lost.pid:
            return f"{process_name(process)} {lost.pid}"
    return "a process" if lost.pid is None else f"process {lost.pid}"
