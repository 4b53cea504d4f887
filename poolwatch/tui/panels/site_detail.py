"""A call site in the pane: its source, and its holds now."""

from __future__ import annotations

from poolwatch.text.format import lasts, neutral, one_line, place, plural
from poolwatch.tui.draw.line import BLANK, Line, beside, rule
from poolwatch.tui.draw.stack import stack_lines
from poolwatch.tui.draw.table import process_cell
from poolwatch.tui.panels.spots import PANE_TALL, WIDE
from poolwatch.tui.state.rows import Row, short_state
from poolwatch.tui.state.site_rows import SiteRow


def site_pane(row: SiteRow, cells: int, height: int) -> list[Line]:
    """Draw the source of a call site, and the holds it has now."""
    name = place(row.frame, 3) if row.frame else f"{row.label}"
    if row.label is not None:
        name = one_line(" = ".join(row.label), 80)
    title: Line = ((name, "title"), (f"  {one_line(row.pool, 40)}", "strong"))
    note: Line = (("enter ", "accent"), ("its holds", "muted"))
    gap = [BLANK] if height >= PANE_TALL else []
    room = height - len(gap) - 1
    source = stack_lines((row.frame,), row.frame, unfold=True) if row.frame else []
    if cells >= WIDE:
        body = beside(source, _holds(row, room), cells // 2) if source else []
        body = body or _holds(row, room)
    else:
        here = [line for line in source if line[0][0].strip().startswith("→")]
        body = [*here, *_holds(row, room - len(here))]
    return [*gap, rule(title, note, cells), *body][:height]


def _holds(row: SiteRow, room: int) -> list[Line]:
    """Draw the holds that are out, the longest first."""
    if not row.holds:
        return [((f"  no hold of it is out now, of {row.stats.count}", "muted"),)]
    count = plural(len(row.holds), "hold")
    head: Line = ((f"  {count} now", "title"),)
    longest = sorted(row.holds, key=lambda each: -each.hold.known_s)
    shown = longest[: max(room - 1, 1)]
    if len(shown) < len(row.holds):
        shown = shown[: max(room - 2, 1)]
    lines = [head, *map(_hold, shown)]
    more = len(row.holds) - len(shown)
    return [*lines, ((f"    and {more} shorter", "muted"),)] if more else lines


def _hold(row: Row) -> Line:
    mark, ink = row.mark
    state = short_state(row.hold.server) or "-"
    return (
        (f"    {mark:<12}", ink),
        (f"{lasts(row.hold):>6}  ", "strong"),
        (f"{one_line(row.holder, 24):<24}  ", "text"),
        (f"{process_cell(row.process)[0]}  ", "muted"),
        (neutral(state), "muted"),
    )
