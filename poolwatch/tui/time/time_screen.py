"""The screen of a moment of the past: the views as they were, below a timeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from textual.binding import BindingType
from textual.widgets import Input

from poolwatch.errors import UsageError
from poolwatch.model import Past
from poolwatch.text.times import AGO, moment
from poolwatch.tui.draw.line import BLANK, Line, rule
from poolwatch.tui.keys import bindings
from poolwatch.tui.panels.footer import footer
from poolwatch.tui.screens import MainScreen
from poolwatch.tui.state.board import Board
from poolwatch.tui.time.looking import (
    SPANS,
    Answer,
    Look,
    Looker,
    Move,
    NextIncident,
    Steps,
    To,
)
from poolwatch.tui.time.timeline import (
    Timeline,
    cells_in,
    incident_after,
    incident_lines,
    strip_lines,
)

_KEYS = "← → step  n N incident  S seek  esc now"
_LATE_S = 0.4
"""Seconds after which the screen says what is being read."""
_PANE_FROM = 16
"""Minimum lines for table and pane, below the timeline and beside the incidents."""
_POOLS_FROM = 40
"""Minimum height for the pools below the timeline."""


class TimeScreen(MainScreen):
    """The views as they were at one moment, with the keys of the main screen.

    Args:
        board: of the main screen; its readings go on.
        past: read on a separate thread.
        move: where to begin.
        notes: how much is kept, and what is wrong with the past.
        wall: the clock that tells how long ago the moment was.
    """

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("time")]
    FOOTER = "time"

    def __init__(
        self,
        board: Board,
        past: Past,
        move: Move,
        *,
        notes: Callable[[], tuple[str, str | None]],
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(board.at_another_moment(), id="time")
        self.live = board
        self.look: Look | None = None
        """What was last seen."""
        self._past = past
        self._first = move
        self._notes = notes
        self._wall = wall
        self._depth = len(board.drills)
        self._looker: Looker | None = None
        self._trouble: str | None = None
        self._asked: Move | None = None
        """What was asked for and has not been read yet."""
        self._is_late = False
        """Whether reading it takes so long that the screen says so."""
        self._strip_at = 0.0
        self._drawn: tuple[Timeline, int, list[Line]] | None = None
        """What the strip was last drawn from."""

    def on_mount(self) -> None:
        """Begin to read."""
        answer = partial(self.app.call_later, self._show)
        self._looker = Looker(self._past, answer)
        self._ask(self._first)
        self.set_interval(1.0, self._follow)

    def on_resize(self) -> None:
        """Read as many steps as there are cells now."""
        self._ask()

    def on_unmount(self) -> None:
        """Read no more."""
        if self._looker is not None:
            self._looker.stop()

    # -- reading ---------------------------------------------------------------------

    def _ask(self, move: Move | None = None) -> None:
        """Read a moment, or only the strip again."""
        if self._looker is None:
            return
        self._strip_at = self._wall()
        self._looker.cells = cells_in(self.app.size.width)
        if move is not None:
            self._asked = move
            self.set_timer(_LATE_S, partial(self._tell, move))
        self._looker.ask(move)

    def _tell(self, move: Move) -> None:
        """Say what is being read, if it is still to come."""
        if self._asked is move:
            self._is_late = True
            self.redraw()

    def _show(self, answer: Answer) -> None:
        """Show what was read."""
        if not self.is_attached:
            return
        self._asked, self._is_late = None, False
        look, note, self._trouble = answer
        if look is not None:
            self.look = look
            if look.snapshot is not None:
                self.board.show_moment(look.snapshot, look.strip.incidents)
        if note is not None:
            self.say(note)
        self.redraw()

    def _follow(self) -> None:
        """Read the strip again when a cell of time has gone by."""
        strip = self.look.strip if self.look else None
        cell = (strip.until - strip.since) / len(strip.steps) if strip else 0.0
        if self._asked is None and self._wall() - self._strip_at >= max(cell, 1.0):
            self._ask()

    # -- drawing ---------------------------------------------------------------------

    def panel_lines(self, width: int, height: int) -> list[Line]:
        """Draw the timeline; the pools only if there is much room."""
        pools = super().panel_lines(width, height // 2) if height >= _POOLS_FROM else []
        return [*self._strip(width), *([BLANK, *pools] if pools else [])]

    def _strip(self, width: int) -> list[Line]:
        kept, trouble = self._notes()
        asked, look = self._asked, self.look
        if asked is not None and self._is_late:
            kept = f"reading {asked.words} …"
        if look is None:
            text = self._trouble or kept
            return [rule((("TIME", "title"), (f"  {text}", "muted")), (), width)]
        board = self.board
        waiting = sum(len(process.waits) for process in board.snapshot.processes)
        timeline = Timeline(
            **look.strip._asdict(),
            at=look.at,
            then=(len(board.rows), waiting, len(board.findings)),
            note=kept,
            keys=_KEYS,
            trouble=self._trouble or trouble,
        )
        if self._drawn is None or self._drawn[:2] != (timeline, width):
            self._drawn = timeline, width, strip_lines(timeline, width)
        return self._drawn[2]

    def pane_lines(self, width: int, room: int) -> list[Line]:
        """Draw the incidents, and below them the pane."""
        look = self.look
        if look is None or not self.pane:
            return []
        incidents = look.strip.incidents
        rows = max(min(len(incidents) + 1, room // 3), 2)
        title: Line = (("INCIDENTS", "title"), (f" {len(incidents)}", "strong"))
        title += ((" in this stretch of time", "muted"),)
        here = incident_after(incidents, look.at + 0.01, back=True)
        selected = here.id if here else None
        lines = [BLANK] if room >= 20 else []
        lines.append(rule(title, (("n N next, before", "muted"),), width))
        lines += incident_lines(incidents, selected, look.extent, width, rows)
        left = room - len(lines)
        return [
            *lines,
            *(super().pane_lines(width, left) if left >= _PANE_FROM else []),
        ]

    # -- keys ------------------------------------------------------------------------

    def action_step(self, by: int) -> None:
        """Go to a later reading, or to an earlier one."""
        self._ask(Steps(by))

    def action_incident(self, back: bool) -> None:
        """Go to the beginning of the next incident, or of the one before."""
        self._ask(NextIncident(back=back))

    def action_span(self, longer: bool) -> None:
        """Show a longer stretch of time, or a shorter one."""
        if self._looker is not None:
            at = SPANS.index(self._looker.span) + (1 if longer else -1)
            self._looker.span = SPANS[min(max(at, 0), len(SPANS) - 1)]
            self._ask()

    def action_seek(self) -> None:
        """Open the input line for a time."""
        if not self.query("#seek") and self._input() is None:
            line = Input(id="seek", compact=True)
            line.placeholder = "03:12  -5min  2026-11-29T03:12  in local time"
            line.cursor_blink = False
            self.mount(line, before="#footer")
            line.focus()
            self.redraw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """A time is no filter."""
        if event.input.id == "seek":
            event.prevent_default()

    def on_input_submitted(self) -> None:
        """Go to the time that was typed; a filter is accepted."""
        if self.query("#seek"):
            self._seek(self.query_one("#seek", Input).value.strip())

    def _seek(self, text: str) -> None:
        if not text:
            return
        try:
            at = moment(text[:60], None)
        except UsageError as error:
            self.say(str(error))
            return
        whole = "." not in text and not AGO.fullmatch(text)
        self._ask(To(at + 0.999 if whole else at))

    def action_back(self) -> None:
        """Close what is typed, go back from where Enter has led, or go to now."""
        if self.query("#seek"):
            self._close_input()
        elif self._input() is not None or len(self.board.drills) > self._depth:
            super().action_back()
        else:
            self.leave()

    def leave(self) -> None:
        """Go back to now, with the view and the filter of this screen."""
        self.live.look_as(self.board)
        self.dismiss()

    def _footer(self, width: int) -> list[Line]:
        seeks = self.query("#seek")
        return [footer("seek", width)] if seeks else super()._footer(width)

    def _close_input(self) -> None:
        self.query("#seek").remove()
        super()._close_input()
