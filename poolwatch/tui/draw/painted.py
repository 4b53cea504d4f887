"""The widget behind every panel: draws styled lines with Textual's Line API.

A DataTable repaints itself at every change (42 ms); this widget repaints only the cells
that differ. Every segment has a style: Textual's NO_COLOR filter crashes without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from poolwatch.text.format import width
from poolwatch.tui.draw.line import INKS, Line, crop

_KEPT = 500
"""Most drawn lines that are kept."""


class Painted(ScrollView, can_focus=False):
    """Draws styled lines; repaints only the cells that have changed."""

    COMPONENT_CLASSES = {f"ink--{ink}" for ink in INKS} | {"ink--selected"}

    class Picked(Message):
        """A line was clicked."""

        def __init__(self, part: str, x: int, line: int, *, twice: bool) -> None:
            super().__init__()
            self.part = part
            """Id of the widget."""
            self.x = x
            self.line = line
            self.twice = twice

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self.count = 0
        """Number of lines; only those in view are drawn."""
        self.selected: int | None = None
        self._draw: Callable[[int], Line] = ().__getitem__
        self._drawn: dict[int, Line] = {}
        """The lines in view, as they were last drawn."""
        self._inks: dict[str, Style] = {}

    def paint(self, lines: Sequence[Line], *, fixed: bool = False) -> None:
        """Show lines; a ``fixed`` widget is as high as it has lines."""
        if fixed:
            self.display = bool(lines)
            if self.count != len(lines):
                self.styles.height = len(lines)
        self.paint_rows(len(lines), lines.__getitem__)

    def paint_rows(
        self, count: int, draw: Callable[[int], Line], selected: int | None = None
    ) -> None:
        """Show ``count`` lines, each drawn when it comes into view.

        ``selected``: the line to highlight and to bring into view.
        """
        same_size, self.count, self._draw = self.count == count, count, draw
        size = Size(self._cells, count)
        if size != self.virtual_size:
            self.virtual_size = size
        before, self._drawn = self._drawn, {}
        if selected != self.selected:
            for line in (self.selected, selected):
                if line is not None:
                    self._refresh_region(Region(0, line, self.size.width, 1))
            self.selected = selected
        if selected is not None:
            self.reveal(selected)
        if same_size:
            self._repaint(before)
        else:
            self.refresh()

    @property
    def _cells(self) -> int:
        return self.size.width or self.app.size.width

    def _line(self, at: int) -> Line:
        if at not in self._drawn:
            if len(self._drawn) > _KEPT:
                self._drawn.clear()
            self._drawn[at] = crop(self._draw(at), self._cells)
        return self._drawn[at]

    def reveal(self, at: int) -> None:
        """Scroll as little as needed to show a line."""
        height, top = self.size.height, self.scroll_offset.y
        if height and not top <= at < top + height:
            self.jump(at if at < top else at - height + 1)

    def jump(self, y: float) -> None:
        """Scroll without an animation."""
        self.scroll_to(y=max(y, 0), animate=False, immediate=True)

    def render_line(self, y: int) -> Strip:
        """Turn one visible line into styled segments."""
        at = y + self.scroll_offset.y
        cells = self.size.width
        line = self._line(at) if at < self.count else ()
        background = self._ink("selected") if at == self.selected else None
        segments = [Segment(text, self._style(ink, background)) for text, ink in line]
        blank = self._style("text", background)
        if self.app.no_color:
            segments = [part for each in segments for part in _tight(each, blank)]
        # Rich counts the cells: it may know a character that our tables do not
        return Strip(segments).adjust_cell_length(cells, blank)

    def notify_style_update(self) -> None:
        """Drop the cached styles when the theme changes."""
        super().notify_style_update()
        self._inks.clear()

    def on_click(self, event: events.Click) -> None:
        """Post the place that was clicked."""
        line = event.y + self.scroll_offset.y
        twice = event.chain == 2
        self.post_message(self.Picked(self.id or "", event.x, line, twice=twice))

    def on_resize(self) -> None:
        """Keep the highlighted line in view."""
        if self.selected is not None:
            self.reveal(self.selected)

    def _style(self, ink: str, background: Style | None) -> Style:
        style = self._ink(ink)
        return style if background is None else style + background

    def _ink(self, name: str) -> Style:
        if name not in self._inks:
            style = self.get_component_rich_style(f"ink--{name}")
            if name == "selected":
                style = Style(bgcolor=style.bgcolor)
            self._inks[name] = style
        return self._inks[name]

    def _repaint(self, before: dict[int, Line]) -> None:
        """Repaint the lines in view that have changed."""
        top = self.scroll_offset.y
        for at in range(top, min(top + self.size.height, self.count)):
            old, new = before.get(at), self._line(at)
            if old is None:
                self._refresh_region(Region(0, at, self.size.width, 1))
            elif old != new:
                x, end = changed(old, new) or (0, self.size.width)
                self._refresh_region(Region(x, at, end - x, 1))

    def _refresh_region(self, region: Region) -> None:
        self.refresh(region.translate((0, -self.scroll_offset.y)))


_NOT_REVERSE = Style(reverse=False)


def _tight(segment: Segment, blank: Style) -> tuple[Segment, ...]:
    """Reverse only words: not the blanks around them, nor bars and signs."""
    text, style = segment.text, segment.style
    if style is None or not style.reverse:
        return (segment,)
    words = text.strip()
    if not any(map(str.isalnum, words)):
        return (Segment(text, style + _NOT_REVERSE),)
    before, _, after = text.partition(words)
    parts = (Segment(before, blank), Segment(words, style), Segment(after, blank))
    return tuple([part for part in parts if part.text])


def changed(before: Line, after: Line) -> tuple[int, int] | None:
    """Return first and last differing cell; None if the whole line must be repainted.

    One region, not several: for each region Textual writes the line from its start.
    """
    if len(before) != len(after):
        return None
    start, end, x = -1, 0, 0
    for (old, old_ink), (new, new_ink) in zip(before, after, strict=True):
        cells = width(new)
        if width(old) != cells:
            return None
        if old != new or old_ink != new_ink:
            start = x if start < 0 else start
            end = x + cells
        x += cells
    return max(start, 0), end
