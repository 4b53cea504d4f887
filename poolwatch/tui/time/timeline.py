"""Draws the timeline: connections out and waiting, findings, the cursor, incidents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from poolwatch.model import Incident, Step, severity_rank
from poolwatch.text.format import duration, fit, one_line, plural, since_epoch
from poolwatch.text.format import width as width_of
from poolwatch.tui.draw.gauge import spark
from poolwatch.tui.draw.line import Line, Run, crop, length, rule
from poolwatch.tui.draw.table import Column, Table
from poolwatch.tui.panels.header import SEVERITIES
from poolwatch.tui.time.ring import Kept

_WIDE = 100
"""Minimum width for labels that are written out."""
_DAY_S = 86_400.0
_ROUNDING_S = 0.001
"""The times that poolwatch prints are cut to milliseconds."""
_GAP = "┊"


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the strip shows. Times are seconds since the epoch."""

    since: float
    until: float
    at: float
    """The moment on the screen."""
    steps: Sequence[Step | None]
    """As many as cells_in() says; after a resize, those of the width before."""
    incidents: Sequence[Incident]
    then: tuple[int, int, int]
    """Out, waiting and findings at the moment, as the tab line counts them."""
    note: str = ""
    """How much is kept, as kept_words() says it."""
    keys: str = ""
    trouble: str | None = None
    """What is wrong with the past, in one sentence."""


def kept_words(kept: Kept) -> str:
    """``600 readings, 3.4 MiB``, and whether they are thinned."""
    words = f"{plural(kept.readings, 'reading')}, {kept.bytes / (1 << 20):.1f} MiB"
    return words + (", the older half 1 in 5" if kept.thinned else "")


def shortened_words(kept: Kept) -> str | None:
    """How much the budget keeps, in one sentence; None if it keeps everything."""
    if kept.shortened is None:
        return None
    return f"the memory for readings is full: {duration(kept.shortened)} are kept"


def cells_in(width: int) -> int:
    """How many cells a strip of this width has for time."""
    return max(width - _label_cells(width) - _figure_cells(width) - 2, 1)


def strip_lines(timeline: Timeline, width: int) -> list[Line]:
    """Draw the strip: title, out, waiting, findings, and the axis with the cursor."""
    cells = cells_in(width)
    wide = width >= _WIDE
    cursor = _cell(timeline, timeline.at, cells)
    names = ("out", "waiting", "findings") if wide else ("out", "wait", "find")
    count = len(timeline.steps)
    shown = range(cells if count else 0)
    steps = [timeline.steps[cell * count // cells] for cell in shown]
    lines = [_title(timeline, width)]
    inks = ("accent", "warn")
    for name, ink, label, then in zip(
        Step._fields, inks, names, timeline.then, strict=False
    ):
        values = [step and getattr(step, name) for step in steps]
        figure = _figures(values, then, wide=wide)
        drawn = (_graph(values, cells), ink)
        lines.append(_row(label, (drawn,), (figure, "text"), width))
    found = timeline.then[2]
    figure = f"{found} then" if wide else str(found)
    ink = "strong" if found else "muted"
    lines.append(_row(names[2], _findings(timeline, cells), (figure, ink), width))
    lines.append(_axis(timeline, _label_cells(width) + cursor, width))
    if timeline.trouble:
        text = one_line(timeline.trouble)
        lines.append(crop((("  ◆ ", "warn"), (text, "muted")), width))
    return lines


def incident_lines(
    incidents: Sequence[Incident],
    selected: str | None,
    extent: tuple[float, float],
    width: int,
    rows: int,
) -> list[Line]:
    """Draw the list of incidents: at most ``rows`` lines, the selected one in sight.

    ``extent``: what is kept; what was there at its beginning may have begun before.
    """
    if not incidents:
        nothing: Line = (("    no incident in this stretch of time", "muted"),)
        return [crop(nothing, width)][:rows]
    days = {local(_seconds(each.started_at), day=True)[:5] for each in incidents}
    table = Table(_columns(extent, day=len(days) > 1), width - 2)
    ids = [each.id for each in incidents]
    room = max(rows - 1, 1)
    index = ids.index(selected) if selected in ids else 0
    first = max(min(index - room // 2, len(incidents) - room), 0)
    titles = "".join(text for text, _ in table.titles()).rstrip()
    lines: list[Line] = [crop(((f"  {titles}", "muted"),), width)]
    for incident in incidents[first : first + room]:
        mark = "  ▸ " if incident.id == selected else "    "
        lines.append(crop(table.line(incident, margin=(mark, "accent")), width))
    return lines[:rows]


def _columns(extent: tuple[float, float], *, day: bool) -> list[Column[Incident]]:
    def began(incident: Incident) -> Run:
        at = began_at(incident)
        before = "≤" if at <= extent[0] + _ROUNDING_S else " "
        return before + local(at, day=day), "text"

    def ended(incident: Incident) -> Run:
        at = incident.ended_at
        return ("-", "muted") if at is None else (local(_seconds(at), day=day), "text")

    def lasted(incident: Incident) -> Run:
        end = extent[1] if incident.ended_at is None else _seconds(incident.ended_at)
        return duration(end - began_at(incident)), "text"

    cells = 14 if day else 8
    return [
        Column("began", " began", cells + 1, cells + 1, 1, began),
        Column("ended", "ended", cells, cells, 2, ended),
        Column("for", "for", 6, 6, 3, lasted),
        Column("what", "  what", 16, 400, 0, draw=_what),
    ]


def _what(incident: Incident, cells: int) -> Line:
    text = f" {one_line(incident.kind, 20)}  {one_line(incident.text)}"
    line = SEVERITIES.get(incident.severity, SEVERITIES["info"]), (text, "text")
    return crop(line, cells)


def began_at(incident: Incident) -> float:
    """Return when an incident began, in seconds since the epoch."""
    return _seconds(incident.started_at)


def incident_after(
    incidents: Sequence[Incident], at: float, *, back: bool = False
) -> Incident | None:
    """Return the next incident that begins after a moment, or the one before it."""
    if back:
        earlier = [each for each in incidents if began_at(each) < at - _ROUNDING_S]
        return max(earlier, key=began_at, default=None)
    later = [each for each in incidents if began_at(each) > at + _ROUNDING_S]
    return min(later, key=began_at, default=None)


def local(at: float, *, day: bool = False, seconds: bool = True) -> str:
    """A time in the time zone of this machine: ``03:12:44`` or ``11-29 03:12:44``."""
    try:
        moment = datetime.fromtimestamp(at).astimezone()
    except (ValueError, OverflowError, OSError):
        return "-"
    form = ("%m-%d " if day else "") + ("%H:%M:%S" if seconds else "%H:%M")
    return f"{moment:{form}}"


# -- the strip -----------------------------------------------------------------------


def _label_cells(width: int) -> int:
    return 11 if width >= _WIDE else 8


def _figure_cells(width: int) -> int:
    return 20 if width >= _WIDE else 9


def _title(timeline: Timeline, width: int) -> Line:
    ends = [_axis_time(timeline, at) for at in (timeline.since, timeline.until)]
    span = " to ".join(ends)
    head: list[Run] = [("TIME  ", "title"), (span, "text")]
    taken = length(head) + width_of(timeline.keys) + 10
    if timeline.note and taken + width_of(timeline.note) <= width:
        head.append((f", {timeline.note}", "muted"))
    return crop(rule(tuple(head), ((timeline.keys, "muted"),), width), width)


def _row(label: str, drawn: Line, figure: Run, width: int) -> Line:
    cells = _figure_cells(width)
    labelled = (fit(f"  {label}", _label_cells(width)), "muted")
    text, ink = figure
    return crop((labelled, *drawn, ("  ", "text"), (fit(text, cells), ink)), width)


def _graph(values: Sequence[int | None], cells: int) -> str:
    """A sparkline; where nobody recorded, between what is recorded, a dotted gap."""
    known = [value for value in values if value is not None]
    drawn = list(spark([value or 0 for value in values], max(known, default=1), cells))
    recorded = [cell for cell, value in enumerate(values) if value is not None]
    for one, following in pairwise(recorded):
        for cell in range(one + 1, following):
            drawn[cell] = _GAP if cell in {one + 1, following - 1} else "·"
    return "".join(drawn)


def _figures(values: Sequence[int | None], then: int, *, wide: bool) -> str:
    """The value at the cursor and the highest one."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    most = max(then, *known)
    return f"{then} then, most {most}" if wide else f"{then}/{most}"


def _findings(timeline: Timeline, cells: int) -> Line:
    """The incidents: the worst of each cell, a shape where one begins or ends."""
    drawn = [("·", "faint")] * cells
    by_severity = sorted(
        timeline.incidents, key=lambda each: -severity_rank(each.severity)
    )
    for incident in by_severity:
        shape, ink = SEVERITIES.get(incident.severity, SEVERITIES["info"])
        began = began_at(incident)
        ended = timeline.until
        if incident.ended_at is not None:
            ended = _seconds(incident.ended_at)
        if ended < timeline.since or began > timeline.until:
            continue
        first, last = (_cell(timeline, at, cells) for at in (began, ended))
        for cell in range(first, last + 1):
            drawn[cell] = ("─", ink)
        if began >= timeline.since:
            drawn[first] = (shape, ink)
        if incident.ended_at is not None and ended <= timeline.until:
            drawn[last] = (shape, ink)
    return _joined(drawn)


def _joined(cells: Sequence[Run]) -> Line:
    """Neighbours of one ink are one run: each run costs bytes at every redraw."""
    runs: list[Run] = []
    for text, ink in cells:
        if runs and runs[-1][1] == ink:
            runs[-1] = (runs[-1][0] + text, ink)
        else:
            runs.append((text, ink))
    return tuple(runs)


def _axis(timeline: Timeline, column: int, width: int) -> Line:
    """The ends of the strip, and the cursor with its time, which comes first."""
    mark, time = "▲", _axis_time(timeline, timeline.at)
    behind = column + 2 + len(time) <= width - 2
    cursor = f"{mark} {time}" if behind else f"{time} {mark}"
    begins = column if behind else max(column - len(time) - 1, 0)
    since, until = (_axis_time(timeline, at) for at in (timeline.since, timeline.until))
    left = f"  {since}" if len(since) + 3 < begins else ""
    line: list[Run] = [(left, "muted"), (" " * (begins - len(left)), "text")]
    line.append((cursor, "accent"))
    end = begins + len(cursor)
    gap = width - 2 - len(until) - end
    if gap > 0:
        line += [(" " * gap, "text"), (until, "muted")]
    return crop(tuple(run for run in line if run[0]), width)


def _axis_time(timeline: Timeline, at: float) -> str:
    """With the day if the strip has several, without seconds if it has many."""
    days = timeline.until - timeline.since >= _DAY_S
    several = local(timeline.since, day=True)[:5] != local(timeline.until, day=True)[:5]
    return local(at, day=several, seconds=not days)


def _cell(timeline: Timeline, at: float, cells: int) -> int:
    span = max(timeline.until - timeline.since, 0.001)
    return min(max(int((at - timeline.since) / span * cells), 0), cells - 1)


def _seconds(at: str) -> float:
    return since_epoch(at) or 0.0
