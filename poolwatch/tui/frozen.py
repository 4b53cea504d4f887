"""Pictures of earlier trouble: a list of them, and each as a board of the past.

A picture is drawn by the same panels as the present. So that nobody takes it for that,
its header says when it was taken instead of how fresh it is, and nothing in it moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import ClassVar

from textual.binding import Binding, BindingType

from poolwatch.kept import happened, moment, of_pool, pool_name
from poolwatch.model import Frozen, Hold, Process, Snapshot
from poolwatch.naming import process_name
from poolwatch.text import fit, one_line, taken_at
from poolwatch.tui import footer
from poolwatch.tui.album import Album
from poolwatch.tui.board import Board
from poolwatch.tui.columns import GAP, Column, Layout, arrange, heads
from poolwatch.tui.ink import BLANK, Line, Run, right, rule, wrap
from poolwatch.tui.main_screen import MainScreen
from poolwatch.tui.pages import Page
from poolwatch.tui.painted import Painted
from poolwatch.tui.reading import Reading

COLUMNS = (
    Column("at", "kept", 23, 23, 0),
    Column("pool", "pool", 8, 18, 1),
    Column("kind", "was", 10, 10, 2),
    Column("holds", "held", 4, 4, 4, right=True),
    Column("waits", "waiting", 7, 7, 5, right=True),
    Column("process", "process", 10, 24, 6),
    Column("most", "most taken at", 18, 60, 3),
)
_ABOUT = (
    "Each process keeps a picture of itself when one of its pools is exhausted, times "
    "out or is deadlocked for the first time. They are lost when the process ends."
)


class FrozenPage(Page):
    """Lists the pictures; Enter opens the selected one."""

    KEYS = footer.FROZEN
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("z", "back", show=False),
        Binding("enter", "open", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("up,k", "move(-1)", show=False),
    ]

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self._at = 0

    def paint(self, now: float, clock: str) -> None:
        """Draw the list, one picture of it selected."""
        super().paint(now, clock)
        frozen = self._album.frozen
        self.part("body").select(min(self._at, len(frozen) - 1) if frozen else None)

    def head(self, cells: int) -> Line:
        """Give the title line with the count."""
        title: Line = (("KEPT PICTURES", "title"), (f" {self._count}", "strong"))
        return rule(title, (("first trouble of each pool", "muted"),), cells)

    def titles(self, cells: int) -> list[Line]:
        """Give the titles of the columns."""
        return [heads(arrange(COLUMNS, cells - 4, ()))] if self._album.frozen else []

    def body(self, cells: int) -> list[Line]:
        """Give the pictures, or say why there are none."""
        if self.board.album is None:
            return [(("  asking the processes …", "muted"),)]
        columns = arrange(COLUMNS, cells - 3, ())
        lines = [_line(picture, columns) for picture in self._album.frozen]
        if not lines:
            lines = _nothing(self._album, cells)
        for gone in self._album.unreachable:
            who = "a process" if gone.pid is None else f"process {gone.pid}"
            why = f"{who} could not tell: {gone.why}"
            lines += [BLANK, (("  ◆ ", "warn"), (one_line(why), "muted"))]
        about = [((f"  {part}", "faint"),) for part in wrap(_ABOUT, cells - 4)]
        return [*lines, BLANK, *about]

    @property
    def _album(self) -> Album:
        return self.board.album or Album()

    @property
    def _count(self) -> str:
        return str(len(self._album.frozen)) if self.board.album else ""

    def action_move(self, by: int) -> None:
        """Select another picture."""
        self._at = max(0, min(self._at + by, len(self._album.frozen) - 1))
        self.redraw()

    def action_open(self) -> None:
        """Show the selected picture."""
        frozen = self._album.frozen
        if frozen:
            picture = frozen[min(self._at, len(frozen) - 1)]
            self.app.push_screen(PastScreen(past_board(picture)))

    def on_painted_picked(self, event: Painted.Picked) -> None:
        """Select with the mouse; a double click opens."""
        if event.line < len(self._album.frozen):
            self._at = event.line
            self.redraw()
            if event.twice:
                self.action_open()


class PastScreen(MainScreen):
    """One picture, drawn like the first screen and with its keys to look around."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "back", show=False)]

    def __init__(self, board: Board) -> None:
        super().__init__(board, id="past")

    def keys(self) -> footer.Keys:
        """Name the keys that make sense in the past."""
        return footer.PAST

    def action_back(self) -> None:
        """Leave the filter first, then the picture."""
        if self.board.filter.text or self.query("#filter"):
            super().action_back()
        else:
            self.dismiss()


def past_board(picture: Frozen) -> Board:
    """Make a board of the pool that a picture is about; it never changes."""
    board = Board(past=picture)
    process = of_pool(picture.process, picture.pool)
    board.take(Reading(0.0, Snapshot((process,))), 0.0)
    return board


def _nothing(album: Album, cells: int) -> list[Line]:
    if album.error is not None:
        return [((f"  {part}", "warn"),) for part in wrap(album.error, cells - 4)]
    if album.unreachable:
        return [(("  no picture was found", "muted"),)]
    text = "no picture was kept: no pool has been exhausted, timed out or deadlocked"
    return [(("  ✓ ", "good"), (text, "text"))]


def _line(picture: Frozen, columns: Layout) -> Line:
    runs: list[Run] = [("  ", "text")]
    for column, cells in columns:
        text, ink = _CELLS[column.key](picture)
        place_ = right if column.right else fit
        runs.append((place_(text, cells) + GAP, ink))
    return tuple(runs)


def _holds(picture: Frozen) -> list[Hold]:
    return [hold for hold in picture.process.holds if hold.pool == picture.pool]


def _waits(picture: Frozen) -> Run:
    count = sum(wait.pool == picture.pool for wait in picture.process.waits)
    return str(count), "warn" if count else "faint"


def _whose(process: Process) -> Run:
    return one_line(f"{process.pid} {process_name(process)}", 60), "muted"


def _most(picture: Frozen) -> Run:
    """Name the call site that held the most connections."""
    sites = Counter(taken_at(hold) for hold in _holds(picture))
    if not sites:
        return "-", "faint"
    ((most, count),) = sites.most_common(1)
    return f"{count} at {most}", "text"


_CELLS: dict[str, Callable[[Frozen], Run]] = {
    "at": lambda picture: (" ".join(moment(picture.at)).strip(), "strong"),
    "pool": lambda picture: (pool_name(picture.process, picture.pool), "strong"),
    "kind": lambda picture: (happened(picture.kind)[0], "bad"),
    "holds": lambda picture: (str(len(_holds(picture))), "text"),
    "waits": _waits,
    "process": lambda picture: _whose(picture.process),
    "most": _most,
}
