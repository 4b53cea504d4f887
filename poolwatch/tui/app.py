"""The dashboard: a Textual app that shows the readings of a source.

Data flows one way: the poller's thread posts a reading, the reading updates the board,
the screens paint the board. No key press waits for the source.
"""

from __future__ import annotations

import gc
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import App
from textual.binding import BindingType
from textual.reactive import var
from textual.screen import Screen
from textual.theme import BUILTIN_THEMES, Theme

from poolwatch.diagnosis.incidents import Incidents as Tracker
from poolwatch.errors import PoolwatchError
from poolwatch.model import Incident, Past, Source
from poolwatch.model.actions import Actions
from poolwatch.text.format import since_epoch, utc_time
from poolwatch.tui.board_screen import BoardScreen, Redraw
from poolwatch.tui.keys import bindings, is_live
from poolwatch.tui.polling import (
    IncidentReader,
    Incidents,
    Mode,
    Poller,
    Reading,
    next_interval,
)
from poolwatch.tui.screens import MainScreen
from poolwatch.tui.state.board import Board
from poolwatch.tui.time.past import Both
from poolwatch.tui.time.ring import Recorder, Ring
from poolwatch.tui.unseen import end_unseen

if TYPE_CHECKING:
    from poolwatch.tui.time.looking import Move

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
        saved: if the source is one saved moment, which is read once: its incidents.
        past: the history; it may be the source itself.
        at: the moment to begin with, in seconds since the epoch; None is now.
        now: the monotonic clock, for ages.
        clock: the time of day for the header.
        wall: seconds since the epoch, for the past.
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
        saved: Sequence[Incident] | None = None,
        past: Past | None = None,
        at: float | None = None,
        now: Callable[[], float] = time.monotonic,
        clock: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
        wall: Callable[[], float] = time.time,
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
        self.poller = Poller(source, refresh, self._offer)
        self._offered: deque[Reading] = deque(maxlen=1)
        """The newest reading until it is shown: a slow machine shows no old ones."""
        self.incident_reader = IncidentReader(
            source, partial(self.call_later, self._show_incidents)
        )
        self.actions = actions
        self.board.fixed = None if saved is None else "saved"
        self._saved = saved
        self.recorder = Recorder(Ring(Tracker()))
        """Keeps the readings, unless they are of the past already."""
        self.past: Past = self.recorder.ring
        """What ``t`` leads to."""
        is_history = id(past) == id(source)
        if past is not None:
            self.past = past if is_history else Both(self.past, past)
        self._records = saved is None and not is_history
        self._first_at = at
        self._now = now
        self._clock = clock
        self._wall = wall
        self._read_once = False
        """Whether to show the next reading although the dashboard is paused."""
        self._painted_at = 0.0
        self._mode: Mode | None = None

    def get_default_screen(self) -> Screen[None]:
        return MainScreen(self.board)

    def on_mount(self) -> None:
        """Start reading after the first frame: it must not wait for the source."""
        if not self.is_headless:
            end_unseen(self)
        self.set_interval(1.0, self._tick)
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        self.poller.start()
        if self.board.fixed is not None:
            self.poller.pace(paused=True)
        if self._records:
            self.recorder.start()
        gc.freeze()  # exclude imported modules from collections
        if self._first_at is not None:
            from poolwatch.tui.time.looking import To

            self._show_past(To(self._first_at))

    def on_unmount(self) -> None:
        self.poller.stop()
        self.recorder.stop()

    # -- readings ------------------------------------------------------------------

    def _show_incidents(self, incidents: Incidents) -> None:
        self.board.incidents = incidents
        self.paint()

    def _offer(self, reading: Reading) -> None:
        """Let a reading be shown, in place of one that was not shown yet."""
        self._offered.append(reading)
        self.call_later(self._accept)

    def _accept(self) -> None:
        """Show the newest reading, unless the dashboard is paused."""
        if not self._offered:
            return
        reading = self._offered.pop()
        if not self.board.paused or self._read_once or self.board.last is None:
            self._read_once = False
            self.reading = reading

    def watch_reading(self, reading: Reading | None) -> None:
        if reading is None:
            return
        if self.board.fixed is not None and reading.snapshot is not None:
            self.board.show_moment(reading.snapshot, self._saved or ())
        else:
            self.board.accept(reading)
        recorded = self.board.recorded()
        if self._records and recorded is not None:
            self.recorder.add(recorded, reading.at)
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
            screen.paint(screen.board.clock(now, self._wall()), self._clock())

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
            screen.paint_head(screen.board.clock(now, self._wall()), self._clock())

    def on_redraw(self, _: Redraw) -> None:
        self.paint()

    # -- keys ----------------------------------------------------------------------

    def action_time(self, seek: bool = False) -> None:
        """Show the past, below a timeline; with ``seek``, ask for a time."""
        screen = self.screen
        if not isinstance(screen, MainScreen):
            return
        if screen.board.fixed is not None:
            screen.say("this is one saved moment: it has no past")
            return
        from poolwatch.tui.time.looking import LAST, Beginning

        row = screen.table.selection.row
        finding = None if row is None else screen.view.sought(row)
        self._show_past(LAST if finding is None else Beginning(finding), seek=seek)

    def _show_past(self, move: Move, *, seek: bool = False) -> None:
        """Show the views as they were at a moment of the past."""
        from poolwatch.tui.time.time_screen import TimeScreen

        notes, wall = self._past_notes, self._wall
        screen = TimeScreen(self.board, self.past, move, notes=notes, wall=wall)
        self.push_screen(screen)
        if seek:
            self.call_after_refresh(screen.action_seek)

    def _past_notes(self) -> tuple[str, str | None]:
        """Return how much is kept in memory, and what is wrong with the past."""
        from poolwatch.tui.time.timeline import kept_words, shortened_words

        if not self._records:
            return "", None
        kept = self.recorder.ring.kept()
        trouble = self.past.trouble if isinstance(self.past, Both) else None
        return kept_words(kept), trouble or shortened_words(kept)

    def action_save(self) -> None:
        """Write the moment on the screen into a file that ``poolwatch tui`` opens."""
        from poolwatch.tui.time.saved import save

        shown = self.top_board
        last = shown.last_good or shown.last
        if last is None or last.snapshot is None:
            self._say("nothing to save: nothing has been read yet")
            return
        snapshot = replace(shown.snapshot, at=shown.moment or utc_time(last.at))

        def write() -> Path:
            known: Sequence[Incident] = self._saved or ()
            if shown.fixed != "saved":
                at = since_epoch(snapshot.at) or last.at
                known = self.past.incidents(at, at)
            return save(snapshot, incidents=known)

        self._write("this moment, for poolwatch tui FILE", write)

    def action_picture(self) -> None:
        """Write the screen into a file, as SVG."""
        from poolwatch.tui.time.saved import default_name, write_new

        svg, path = picture(self), Path(default_name(self.top_board.moment, ".svg"))
        self._write("the picture", lambda: write_new(path, svg))

    def _write(self, what: str, write: Callable[[], Path]) -> None:
        """Write a file on a thread, and tell its path: a disk may be slow."""
        if self.is_web:  # whoever looks from a browser has no files on this machine
            self._say("a browser saves no files here: use poolwatch tui in a terminal")
            return

        def run() -> None:
            try:
                said = f"saved {what}: {write()}"
            except PoolwatchError as error:
                said = str(error)
            self.call_later(self._say, said)

        threading.Thread(target=run, name="poolwatch-save", daemon=True).start()

    def _say(self, note: str) -> None:
        if isinstance(self.screen, BoardScreen):
            self.screen.say(note)

    def action_incidents(self) -> None:
        """Fetch the incident snapshots from the processes, and list them."""
        from poolwatch.tui.incident_screens import IncidentsPage

        if self.board.fixed is not None:
            self._say("this is one saved moment: its processes are not asked")
        elif isinstance(self.screen, MainScreen) and self.top_board is self.board:
            self.board.incidents = None
            self.incident_reader.read()
            self.push_screen(IncidentsPage(self.board))
        elif isinstance(self.screen, MainScreen):
            self.screen.say("z needs the present: press esc first")

    def check_action(
        self,
        action: str,
        parameters: tuple[object, ...],  # noqa: ARG002 - Textual's signature
    ) -> bool:
        """Disable the keys that control readings on an incident snapshot."""
        live = self.top_board is self.board and self.board.fixed is None
        return live or not is_live(action)

    def action_quit_if_meant(self) -> None:
        """Quit at the second ctrl+c: who copies with it would lose what is kept."""
        screen, said = self.screen, "ctrl+c again quits; y copies path:line, Y all"
        if isinstance(screen, BoardScreen) and screen.note != said:
            screen.say(said)
        else:
            self.exit()

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


def picture(app: App[None]) -> str:
    """Return the screen as SVG, in the fonts of the page that shows it."""
    svg = app.export_screenshot(title="poolwatch tui", simplify=True)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, DejaVu Sans Mono, Menlo")
