"""A finding in the pane and as an issue: proof, remedy, source and what it leads to."""

from __future__ import annotations

from poolwatch.diagnosis.merging import Key, Merged
from poolwatch.model import Hold, Process
from poolwatch.text.format import duration, neutral, place
from poolwatch.tui.draw.line import BLANK, Line, Run, labelled, rule, wrap
from poolwatch.tui.panels.spots import (
    PANE_TALL,
    WIDE,
    Spot,
    brief_line,
    brief_lines,
    current,
    pair_lines,
    taken,
)
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import hold_key

_LABEL = 8
"""Width of the labels on the left."""


def finding_pane(board: Board, finding: Merged, cells: int, height: int) -> list[Line]:
    """Draw what is known of a finding, the most useful first."""
    about = finding.pool or finding.key.about
    about = place(finding.sites[0]) if finding.sites else about
    title: Line = ((finding.kind, "title"), (f"  {neutral(about)}", "strong"))
    tall = height >= PANE_TALL
    width = min(cells - 2, 150)
    lines: list[Line] = []
    if len(finding.text) > cells // 2:  # its row has cut it
        lines = [((f"  {part}", "text"),) for part in wrap(finding.text, width - 2, 2)]
    lines += _fact("proof", finding.proof, width, 3 if tall else 1)
    lines += _fact("remedy", finding.remedy, width, 3 if tall else 1)
    lines += _source(board, finding, cells, tall=tall)
    lines += _fact("leads to", leads_in_words(board, finding), width, 2)
    if finding.who:
        lines += _fact("in", finding.who, width, 2)
    gap = [BLANK] if tall else []
    return [*gap, rule(title, _keys(board, finding, cells), cells), *lines][:height]


def _keys(board: Board, finding: Merged, cells: int) -> Line:
    wide = cells >= WIDE
    keys = [("enter ", "its holds  ")] if finding.holds else []
    if finding.kind == "lock_wait":
        keys.append(("4 ", "its tree  " if wide else "tree  "))
    if board.fixed is None:
        keys.append(("t ", "when it began  " if wide else "began"))
    if wide:
        keys.append(("Y ", "copy as an issue"))
    runs: list[Run] = []
    for key, text in keys:
        runs += [(key, "accent"), (text, "muted")]
    return tuple(runs)


def _fact(name: str, text: str, cells: int, limit: int) -> list[Line]:
    return labelled(f"  {name:<{_LABEL}}  ", text, cells, limit)


def leads_in_words(board: Board, finding: Merged) -> str:
    """Say what a finding leads to, and how much later that began."""
    return "; ".join(_led_to(board, finding, key) for key in finding.leads_to)


def _led_to(board: Board, finding: Merged, key: Key) -> str:
    """Say what another finding is, and how much later it began."""
    other = next((each for each in board.findings if each.key == key), None)
    if other is None:
        return str(key)
    cause, effect = board.entry(finding), board.entry(other)
    later = effect.since - cause.since if cause and effect else 0.0
    return f"{other.text}, {duration(later)} later" if later >= 1 else other.text


def _worst(finding: Merged) -> tuple[Process, Hold] | None:
    """The hold to look at: the root of a lock, else the longest."""
    if finding.kind == "lock_wait":
        return next(iter(finding.holds), None)
    return max(finding.holds, key=lambda each: each[1].known_s, default=None)


def _source(board: Board, finding: Merged, cells: int, *, tall: bool) -> list[Line]:
    """Draw where its worst hold was taken, and where its holder is now."""
    worst = _worst(finding)
    row = None if worst is None else board.rows.get(hold_key(worst[0], worst[1].id))
    if row is None:
        return [
            brief_line(Spot("", "→", site), with_file=True)
            for site in finding.sites[:1]
        ]
    spots = taken(row), current(board, row)
    if tall and cells >= WIDE:
        return pair_lines(*spots, cells)
    return brief_lines(*spots)
