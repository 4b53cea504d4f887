"""What all screens share: parts that show a board, a note, and what can be copied."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from textual._styles_cache import StylesCache
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.events import Key
from textual.message import Message
from textual.screen import Screen

from poolwatch.model import Frame
from poolwatch.text.format import neutral, one_line
from poolwatch.tui.draw.line import BLANK, Line, wrap
from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.keys import bindings
from poolwatch.tui.panels import header
from poolwatch.tui.panels.footer import footer
from poolwatch.tui.state.board import Board


class Redraw(Message):
    """Posted after a key press that changes the view, not the data."""


class BoardScreen(Screen[None]):
    """A screen made of Painted widgets, its parts, that show a board."""

    ALLOW_SELECT = False
    PARTS: ClassVar[tuple[str, ...]] = ()
    FOOTER: ClassVar[str]
    """The screen's name in KEYS."""

    def __init__(self, board: Board, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.board = board
        self.note: str | None = None
        """What the last key has done, or why it has done nothing; one sentence."""

    def compose(self) -> ComposeResult:
        for part in self.PARTS:
            yield Painted(id=part)

    def part(self, name: str) -> Painted:
        return self.get_child_by_id(name, Painted)

    def paint(self, now: float, clock: str) -> None:
        """Draw the board; unchanged parts cost nothing."""
        raise NotImplementedError

    def paint_head(self, now: float, clock: str) -> None:
        """Draw clock and ages, which change without a new reading."""
        self.paint(now, clock)

    def redraw(self) -> None:
        """Draw after a key press, without a new reading."""
        self.post_message(Redraw())

    def on_key(self, event: Key) -> None:
        """A key ends the note of the key before; ctrl+c first looks at it."""
        if event.key != "ctrl+c":
            self.note = None

    def say(self, note: str) -> None:
        """Show what a key has done in place of the footer, until the next key."""
        self.note = one_line(note)
        self.redraw()

    def copy_place(self, frame: Frame | None) -> None:
        """Copy a place in the source, as an editor opens it."""
        if frame is None:
            self.say("nothing to copy: this row has no place in the source")
        else:
            # a line end in a path would run what is before it where it is pasted
            self.copy_text(neutral(f"{frame.file}:{frame.line}"))

    def copy_text(self, text: str) -> None:
        """Copy a text, and say so."""
        self.app.copy_to_clipboard(text)
        first, *others = text.splitlines()
        more = f" … {len(others) + 1} lines" if others else ""
        if "TMUX" in os.environ:
            self.say(f"sent to tmux: {first}{more} (pasted only with set-clipboard on)")
        else:
            self.say(f"sent to the terminal's clipboard: {first}{more}")

    def footer(self, width: int, **options: Any) -> list[Line]:
        """Draw the note, in as many lines as it takes, or else the keys."""
        if self.note is not None:
            return [((f"  {part}", "warn"),) for part in wrap(self.note, width - 4)]
        return [footer(self.FOOTER, width, paused=self.board.paused, **options)]

    def on_screen_resume(self) -> None:
        """Catch up after another screen was on top."""
        self.redraw()

    def on_unmount(self) -> None:
        """Drop the drawn lines: Textual keeps those of a thousand dead widgets."""
        StylesCache.get_inner_outer.cache_clear()

    def on_resize(self) -> None:
        self.redraw()


class Page(BoardScreen):
    """A page with a title and lines that scroll; Escape goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("page")]
    FOOTER = "page"
    PARTS = ("header", "head", "body", "footer")

    def paint(self, now: float, clock: str) -> None:
        width = self.app.size.width
        top = [header.header(self.board, now, clock, width)]
        self.part("header").paint(top, fixed=True)
        titles = self.titles(width)
        self.part("head").paint([BLANK, self.head(width), *titles], fixed=True)
        body = self.body(width - 1)
        lines = body if titles else [BLANK, *body]
        self.part("body").paint_rows(len(lines), lines.__getitem__, self.selected())
        keys = self.footer(width, is_fixed=self.board.fixed is not None)
        self.part("footer").paint(keys, fixed=True)

    def selected(self) -> int | None:
        """Index of the selected line of the body."""
        return None

    def head(self, cells: int) -> Line:
        """The title line."""
        raise NotImplementedError

    def titles(self, cells: int) -> list[Line]:  # noqa: ARG002 - for pages with columns
        """Lines above the body that do not scroll, such as column titles."""
        return []

    def body(self, cells: int) -> list[Line]:
        """Lines of the body, which scroll."""
        raise NotImplementedError

    def action_back(self) -> None:
        self.dismiss()

    def action_scroll(self, by: int) -> None:
        body = self.part("body")
        body.jump(min(body.scroll_offset.y + by, body.max_scroll_y))
