"""The dashboard: a Textual app that shows the readings of a source.

Data flows one way: the poller's thread posts a reading, the reading updates the board,
the screens paint the board. No key press waits for the source.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from textual.app import App
from textual.binding import BindingType
from textual.reactive import var
from textual.screen import Screen
from textual.theme import BUILTIN_THEMES, Theme

from poolwatch.model import Source
from poolwatch.model.actions import Actions
from poolwatch.tui.keys import bindings, is_live
from poolwatch.tui.polling import (
    IncidentReader,
    Incidents,
    Mode,
    Poller,
    Reading,
    next_interval,
)
from poolwatch.tui.screens import BoardScreen, MainScreen, Redraw
from poolwatch.tui.state.board import Board

THEME = Theme(
    name="poolwatch",
    primary="#6cb6ff",
    secondary="#4a7fb5",
    accent="#6cb6ff",
    warning="#e8b04b",
    error="#ff7a72",
    success="#74c991",
    foreground="#dce3ea",
    background="#10151b",
    surface="#161d25",
    panel="#243140",
    dark=True,
)
"""Used unless another theme is named."""
THEMES = (THEME.name, *BUILTIN_THEMES)
_TEXTUALS_OWN = "textual-dark"


class Dashboard(App[None]):
    """Shows who holds the connections of a source; reads it every ``refresh`` seconds.

    Args:
        source: read on a separate thread.
        refresh: seconds between two readings.
        empty_hint: instructions, shown while there is no process.
        theme: one of THEMES; None: TEXTUAL_THEME, or else poolwatch's own.
        actions: cancels statements and ends sessions; None if that is not allowed.
        now: the monotonic clock, for ages.
        clock: the time of day for the header.
    """

    CSS_PATH = "poolwatch.tcss"
    TITLE = "poolwatch"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app")]

    reading: var[Reading | None] = var(None, init=False)
    """The newest reading; setting it paints the screen."""

    def __init__(
        self,
        source: Source,
        *,
        refresh: float = 1.0,
        empty_hint: str = "",
        theme: str | None = None,
        actions: Actions | None = None,
        now: Callable[[], float] = time.monotonic,
        clock: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ) -> None:
        super().__init__()
        self.register_theme(THEME)
        if theme is not None or self.theme == _TEXTUALS_OWN:
            # before the first frame, which would else be drawn in Textual's colours
            self.set_reactive(App.theme, theme or THEME.name)
            self.stylesheet.set_variables(self.get_css_variables())
        self.animation_level = "none"
        self.board = Board(refresh=refresh, empty_hint=empty_hint)
        # Callbacks run on other threads, where only call_later is safe.
        self.poller = Poller(source, refresh, partial(self.call_later, self._accept))
        self.incident_reader = IncidentReader(
            source, partial(self.call_later, self._show_incidents)
        )
        self.actions = actions
        self._now = now
        self._clock = clock
        self._read_once = False
        """Whether to show the next reading although the dashboard is paused."""
        self._painted_at = 0.0
        self._mode: Mode | None = None

    def get_default_screen(self) -> Screen[None]:
        return MainScreen(self.board)

    def on_mount(self) -> None:
        """Start reading after the first frame: it must not wait for the source."""
        self.set_interval(1.0, self._tick)
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        self.poller.start()
        gc.freeze()  # exclude imported modules from collections

    def on_unmount(self) -> None:
        self.poller.stop()

    # -- readings ------------------------------------------------------------------

    def _show_incidents(self, incidents: Incidents) -> None:
        self.board.incidents = incidents
        self.paint()

    def _accept(self, reading: Reading) -> None:
        """Show a reading, unless the dashboard is paused."""
        if not self.board.paused or self._read_once or self.board.last is None:
            self._read_once = False
            self.reading = reading

    def watch_reading(self, reading: Reading | None) -> None:
        if reading is not None:
            self.board.accept(reading)
            self.paint()

    # -- drawing -------------------------------------------------------------------

    @property
    def top_board(self) -> Board:
        """The board of the top screen: live data, or an incident snapshot."""
        return self.screen.board if isinstance(self.screen, BoardScreen) else self.board

    def paint(self) -> None:
        """Draw the top screen; the others are drawn when they are resumed."""
        now = self._painted_at = self._now()
        self._mode = self.board.mode(now)
        if (screen := self._drawable()) is not None:
            screen.paint(now, self._clock())

    def _drawable(self) -> BoardScreen | None:
        """Return the top screen, if its widgets are mounted.

        A reading can arrive before that, or while the app closes.
        """
        screen = self.screen if self.is_running and self.size else None
        if isinstance(screen, BoardScreen) and screen.is_mounted:
            return screen
        return None

    def _tick(self) -> None:
        """Update clock and ages when no reading arrives."""
        now = self._now()
        if now - self._painted_at < 0.9:
            return
        tombstone = any(
            state.selection.gone_at is not None for state in self.board.tables.values()
        )
        if tombstone or self.board.mode(now) != self._mode:
            self.paint()
        elif (screen := self._drawable()) is not None:
            screen.paint_head(now, self._clock())

    def on_redraw(self, _: Redraw) -> None:
        self.paint()

    # -- keys ----------------------------------------------------------------------

    def action_incidents(self) -> None:
        """Fetch the incident snapshots from the processes, and list them."""
        from poolwatch.tui.incident_screens import IncidentsPage

        if isinstance(self.screen, MainScreen) and self.top_board is self.board:
            self.board.incidents = None
            self.incident_reader.read()
            self.push_screen(IncidentsPage(self.board))

    def check_action(
        self,
        action: str,
        parameters: tuple[object, ...],  # noqa: ARG002 - Textual's signature
    ) -> bool:
        """Disable the keys that control readings on an incident snapshot."""
        return self.top_board is self.board or not is_live(action)

    def action_pause(self) -> None:
        """Pause or resume the readings."""
        self.board.paused = not self.board.paused
        self.poller.pace(paused=self.board.paused)
        self.paint()

    def action_read(self) -> None:
        """Read now, also while paused."""
        self._read_once = True
        self.poller.read_now()

    def action_pace(self, faster: bool) -> None:
        """Read more or less often."""
        self.board.refresh = next_interval(self.board.refresh, faster=faster)
        self.poller.pace(interval=self.board.refresh)
        self.paint()
