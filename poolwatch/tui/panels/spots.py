"""Where a connection was taken and where its holder is now, with the source."""

from __future__ import annotations

from typing import NamedTuple

from poolwatch.model import Frame, Process
from poolwatch.stacks.compare import user_frames
from poolwatch.text.format import duration, local_time, neutral, place
from poolwatch.tui.draw.line import Line, beside, right
from poolwatch.tui.draw.source_lines import around, changed_since
from poolwatch.tui.draw.stack import source_lines
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import Row

REACH = 2
"""Lines of source above and below a spot."""
WIDE = 110
"""Minimum width for two columns."""
PANE_TALL = 9
"""Minimum height of a pane with several lines of source."""
NOT_READ = "the holder has ended, or cannot be read"
_MARK = 5
"""Width of the mark before a line of source."""


class Spot(NamedTuple):
    """One place in the source, and what happened there."""

    title: str
    mark: str
    """The title in one word."""
    frame: Frame | None
    note: str = ""


def taken(row: Row) -> Spot:
    """Return where a connection was checked out."""
    caller, site = row.hold.caller, row.hold.site
    notes = changed(row.process, site)
    notes += [f"from {place(caller)}"] if caller else []
    return Spot("CHECKED OUT HERE", "→", site, "  ".join(notes))


def changed(process: Process, frame: Frame | None) -> list[str]:
    """Return a note if the source on the screen may not be what the process runs."""
    if frame is None or not changed_since(frame.file, process.started_at):
        return []
    return ["file changed since"]


def current(board: Board, row: Row) -> Spot:
    """Return where the holder is now, or else where it last used the connection."""
    hold, (title, mark) = row.hold, now_title(board, row)
    if hold.now:
        return Spot(title, mark, own_frame(hold.now, hold.site))
    if not hold.used:
        return Spot(title, mark, None, NOT_READ)
    age = use_age(board, row) if hold.unused_s is not None else ""
    return Spot("LAST USED HERE", "used", own_frame(hold.used, hold.site), age)


def now_title(board: Board, row: Row) -> tuple[str, str]:
    """Return the title for where the holder is; in a past moment: where it was."""
    at = row.process.at or board.moment
    if at is not None:
        return f"HERE AT {local_time(at)}", "then"
    return ("NOW HERE", "now") if row.key in board.rows else ("LAST SEEN HERE", "last")


def use_age(board: Board, row: Row) -> str:
    """Return how long ago the last statement ran: before now, or before then."""
    past = board.moment is not None
    if row.hold.unused_s == 0:
        ended = row.key not in board.rows
        return "was running" if ended else "running then" if past else "running now"
    return f"{duration(row.hold.unused_s)} {'before' if past else 'ago'}"


def own_frame(stack: tuple[Frame, ...], site: Frame | None) -> Frame:
    """Return the innermost frame of the application, if there is one."""
    return next(iter(user_frames(stack, site)), stack[0])


def spot_lines(spot: Spot) -> list[Line]:
    """Draw a spot with the lines around it."""
    head: Line = ((f"  {spot.title}", "title"), *_where(spot))
    if spot.frame is None:
        return [head]
    source = around(spot.frame.file, spot.frame.line, REACH, REACH)
    return [head, *source_lines(source, spot.frame.line)]


def _where(spot: Spot) -> Line:
    note: Line = ((f"  {spot.note}", "muted"),) if spot.note else ()
    if spot.frame is None:
        return note
    function = neutral(spot.frame.function[:80])
    where = ((f"  {place(spot.frame)}", "strong"), ("  in ", "muted"))
    return (*where, (function, "text"), *note)


def pair_lines(one: Spot, other: Spot, cells: int) -> list[Line]:
    """Draw two spots side by side."""
    return beside(spot_lines(one), spot_lines(other), cells // 2)


def brief_lines(one: Spot, other: Spot) -> list[Line]:
    """Draw two spots in a line each; the file of the second one if it is another."""
    same_file = bool(one.frame and other.frame and one.frame.file == other.frame.file)
    first = brief_line(one._replace(note=""), with_file=False)
    return [first, brief_line(other, with_file=not same_file)]


def brief_line(spot: Spot, *, with_file: bool = False) -> Line:
    """Draw a spot in one line: its mark, its line of source."""
    mark = (right(spot.mark, _MARK), "accent")
    note: Line = ((f" {spot.note} ", "muted"),) if spot.note else ()
    frame = spot.frame
    if frame is None:
        return (mark, *note)
    source = around(frame.file, frame.line, 0, 0)
    if not source:
        function = neutral(frame.function[:80])
        where = (f" {place(frame)}", "strong")
        return (mark, *note, where, (f"  in {function}", "text"))
    number = place(frame, 1) if with_file else str(frame.line)
    code = source[0][1].strip()
    return (mark, *note, (f" {number}  ", "accent"), (code, "strong"))
