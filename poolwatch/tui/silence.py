"""Words for processes that do not answer, and for those that have ended."""

from __future__ import annotations

from poolwatch.model import Unreachable
from poolwatch.text.format import clock, duration, one_line
from poolwatch.tui.state.board import Board


def silent(board: Board, now: float) -> list[str]:
    """Give a sentence for each process that does not answer."""
    reading = board.last
    return [_silent(board, each, now) for each in (reading.silent if reading else ())]


def _silent(board: Board, lost: Unreachable, now: float) -> str:
    age = board.last_seen(lost.pid or 0, now)
    who = _name(board, lost)
    why = lost.why.removeprefix("it ")
    if why == lost.why:  # an error in words of its own
        who, why = f"{who} gives no picture", f"({why})"
    if age is not None and "does not answer" in why:
        why = why.replace("does not answer", f"has not answered for {duration(age)}")
    elif age is not None:
        why += f"; shown as seen {duration(age)} ago"
    return one_line(f"{who} {why}")


def ended(board: Board) -> str | None:
    """Say which process has ended last, and when; None if none has of late."""
    snapshot = board.last.snapshot if board.last else None
    unreachable = snapshot.unreachable if snapshot else ()
    gone = [each for each in unreachable if each.alive is False]
    if not gone:
        return None
    last = max(gone, key=lambda each: each.since or "")
    others = f", and {len(gone) - 1} before it" if len(gone) > 1 else ""
    return one_line(f"{_name(board, last)} ended at {clock(last.since or '')}{others}")


def _name(board: Board, lost: Unreachable) -> str:
    """Name and pid, as far as they are known."""
    if lost.pid is None:
        return "a process"
    return f"{board.names.get(lost.pid, 'process')} {lost.pid}"
