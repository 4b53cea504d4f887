"""The dashboard itself: readings come in, keys come in, screens are drawn.

One way only: the poller's thread posts a reading, the reading becomes the board, the
board is painted. No key press ever asks the source.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import var
from textual.screen import Screen

from poolwatch.model import Source
from poolwatch.tui.album import Album, Asker
from poolwatch.tui.board_screen import BoardScreen, Redraw
from poolwatch.tui.polling import Poller, stepped
from poolwatch.tui.reading import Mode, Reading
from poolwatch.tui.screens import MainScreen, OpenDetail
from poolwatch.tui.state.board import Board
from poolwatch.tui.theme import THEME


class Arrived(Message):
    """The poller has an answer."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading


class Opened(Message):
    """The kept pictures are here."""

    def __init__(self, album: Album) -> None:
        super().__init__()
        self.album = album


class Dashboard(App[None]):
    """Shows who holds the connections of a source, once a ``refresh``."""

    CSS_PATH = "poolwatch.tcss"
    TITLE = "poolwatch"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", show=False),
        Binding("question_mark,f1", "help", show=False),
        Binding("w", "why", show=False),
        Binding("c", "sites", show=False),
        Binding("z", "frozen", show=False),
        Binding("p", "pause", show=False),
        Binding("R", "read", show=False),
        Binding("plus,equals_sign", "pace(True)", show=False),
        Binding("minus", "pace(False)", show=False),
    ]

    reading: var[Reading | None] = var(None, init=False)
    """The newest answer; records are frozen, so setting it is all it takes."""

    def __init__(
        self,
        source: Source,
        *,
        refresh: float = 1.0,
        empty_hint: str = "",
        now: Callable[[], float] = time.monotonic,
        clock: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ) -> None:
        super().__init__()
        self.animation_level = "none"
        self.board = Board(refresh=refresh, empty_hint=empty_hint)
        self.poller = Poller(source, refresh, self._tell)
        self.asker = Asker(source, self._opened)
        self._now = now
        self._clock = clock
        self._wanted = False
        """Whether an answer is wanted although the data is paused."""
        self._painted_at = 0.0
        self._mode: Mode | None = None

    def get_default_screen(self) -> Screen[None]:
        """Begin with the main screen."""
        return MainScreen(self.board)

    def on_mount(self) -> None:
        """Paint first, ask after: the frame must not wait for the source."""
        self.register_theme(THEME)
        if self.theme == "textual-dark":
            self.theme = THEME.name
        self.set_interval(1.0, self._tick)
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        self.poller.start()
        gc.freeze()  # what was imported stays: no need to walk it again and again

    def on_unmount(self) -> None:
        """Leave no question behind."""
        self.poller.stop()

    # -- readings ------------------------------------------------------------------

    def _tell(self, reading: Reading) -> None:
        """Run on the poller's thread: posting is all that is safe there."""
        if self.is_running:
            self.post_message(Arrived(reading))

    def _opened(self, album: Album) -> None:
        """Run on the asker's thread."""
        if self.is_running:
            self.post_message(Opened(album))

    def on_opened(self, message: Opened) -> None:
        """Accept the kept pictures."""
        self.board.album = message.album
        self.paint()

    def on_arrived(self, message: Arrived) -> None:
        """Accept an answer, unless the user has stopped the picture."""
        if not self.board.paused or self._wanted or self.board.last is None:
            self._wanted = False
            self.reading = message.reading

    def watch_reading(self, reading: Reading | None) -> None:
        """Turn the answer into a picture."""
        if reading is not None:
            self.board.take(reading, self._now())
            self.paint()

    # -- drawing -------------------------------------------------------------------

    @property
    def shown(self) -> Board:
        """The board of the screen on top: the present, or a picture of the past."""
        return self.screen.board if isinstance(self.screen, BoardScreen) else self.board

    def paint(self) -> None:
        """Draw the screen on top; those below are drawn when they come back."""
        screen = self.screen
        now = self._painted_at = self._now()
        self._mode = self.board.mode(now)
        if self.size and isinstance(screen, BoardScreen):
            screen.paint(now, self._clock())

    def _tick(self) -> None:
        """Keep clock and ages going while no answer comes."""
        now = self._now()
        if now - self._painted_at < 0.9:
            return
        if (
            self.board.selection.gone_at is not None
            or self.board.mode(now) != self._mode
        ):
            self.board.settle(now)
            self.paint()
        elif isinstance(self.screen, BoardScreen):
            self.screen.paint_head(now, self._clock())

    def on_redraw(self, _: Redraw) -> None:
        """Draw what the user asked for."""
        self.shown.settle(self._now())
        self.paint()

    # -- keys ----------------------------------------------------------------------

    def on_open_detail(self, _: OpenDetail) -> None:
        """Show the selected hold in full."""
        from poolwatch.tui.pages import DetailPage

        row = self.shown.selection.row
        if row is not None:
            self.push_screen(DetailPage(self.shown, row))

    def action_help(self) -> None:
        """Show the help page."""
        from poolwatch.tui.pages import HelpPage

        if isinstance(self.screen, MainScreen):
            self.push_screen(HelpPage(self.shown))

    def action_why(self) -> None:
        """Show everything that is wrong."""
        from poolwatch.tui.pages import WhyPage

        if isinstance(self.screen, MainScreen):
            self.push_screen(WhyPage(self.shown))

    def action_sites(self) -> None:
        """Show what each call site does to its pool."""
        from poolwatch.tui.pages import SitesPage

        if isinstance(self.screen, MainScreen):
            self.push_screen(SitesPage(self.shown))

    def action_frozen(self) -> None:
        """Show what is kept of earlier trouble; only now the processes are asked."""
        from poolwatch.tui.frozen_screens import FrozenPage

        if isinstance(self.screen, MainScreen) and self.shown is self.board:
            self.board.album = None
            self.asker.ask()
            self.push_screen(FrozenPage(self.board))

    def check_action(
        self,
        action: str,
        parameters: tuple[object, ...],  # noqa: ARG002 - Textual's signature
    ) -> bool:
        """Nothing of the present can be changed from the past."""
        return self.shown is self.board or action not in ("pause", "read", "pace")

    def action_pause(self) -> None:
        """Stop the picture, or let it go on."""
        self.board.paused = not self.board.paused
        self.poller.pace(paused=self.board.paused)
        self.paint()

    def action_read(self) -> None:
        """Read now, also while paused."""
        self._wanted = True
        self.poller.now()

    def action_pace(self, faster: bool) -> None:
        """Read more or less often."""
        self.board.refresh = stepped(self.board.refresh, faster=faster)
        self.poller.pace(interval=self.board.refresh)
        self.paint()
