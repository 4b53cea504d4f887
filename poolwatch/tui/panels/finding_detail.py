"""A finding in the pane and as an issue: proof, remedy, source and what it leads to."""

from __future__ import annotations

from collections.abc import Iterator

from poolwatch.diagnosis.merging import Key, Merged
from poolwatch.model import Frame, Hold, Process
from poolwatch.stacks.compare import user_frames
from poolwatch.text.format import (
    call_site,
    clock,
    duration,
    neutral,
    place,
    plural,
    utc_time,
)
from poolwatch.tui.draw.line import BLANK, Line, Run, rule, wrap
from poolwatch.tui.draw.source_lines import around
from poolwatch.tui.state.board import Board

LABEL = 8
"""Width of the labels on the left."""
LOW = 9
"""Below this height, the pane has no blank lines."""
_MAX_HOLDS = 20
"""Most holds that an issue names."""


def finding_pane(board: Board, finding: Merged, cells: int, height: int) -> list[Line]:
    """Draw what is known of a finding, the most useful first."""
    about = finding.pool or finding.key.about
    about = place(finding.sites[0]) if finding.sites else about
    title: Line = ((finding.kind, "title"), (f"  {neutral(about)}", "strong"))
    gap = [BLANK] if height >= LOW else []
    room = max(2, height - len(gap) - 1)
    width = min(cells - 2, 150)
    proof = list(_labelled("proof", finding.proof, width, 3 if gap else 2))
    remedy = list(_labelled("remedy", finding.remedy, width, 3 if gap else 1))
    rest = list(_labelled("leads to", _leads(board, finding), width, 2))
    if gap and finding.who:
        rest += _labelled("in", finding.who, width, 2)
    source = _source(finding, around_lines=room > len(proof + remedy + rest) + 4)
    body = [*proof, *remedy, *source, *rest]
    return [*gap, rule(title, _keys(finding), cells), *body][:height]


def _keys(finding: Merged) -> Line:
    keys = [("enter ", "its holds  ")] if finding.holds else []
    if finding.kind == "lock_wait":
        keys.append(("4 ", "its tree  "))
    keys.append(("Y ", "copy as an issue"))
    runs: list[Run] = []
    for key, text in keys:
        runs += [(key, "accent"), (text, "muted")]
    return tuple(runs)


def _labelled(label: str, text: str, cells: int, limit: int) -> Iterator[Line]:
    for at, part in enumerate(wrap(text, cells - LABEL - 4, limit)):
        name = "" if at else label
        yield ((f"  {name:<{LABEL}}  ", "muted"), (part, "text"))


def _leads(board: Board, finding: Merged) -> str:
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
    return max(finding.holds, key=lambda each: each[1].held_s, default=None)


def _source(finding: Merged, *, around_lines: bool) -> list[Line]:
    """Draw where its worst hold was taken, and where its holder is now."""
    worst = _worst(finding)
    if worst is None:
        taken = finding.sites[0] if finding.sites else None
        return _spot("→", taken, 1 if around_lines else 0)
    _, hold = worst
    now = next(iter(user_frames(hold.now, hold.site)), None) if hold.now else None
    lines = _spot("→", hold.site, 1 if around_lines else 0)
    return lines + ([] if now == hold.site else _spot("now", now, 0))


def _spot(mark: str, frame: Frame | None, reach: int) -> list[Line]:
    """Draw a line of source, or the place if its file is not here."""
    if frame is None:
        return []
    source = around(frame.file, frame.line, reach, reach)
    if not source:
        text = f"{place(frame)} in {neutral(frame.function[:80])}"
        return [((f"  {mark:>{LABEL}}  ", "accent"), (text, "strong"))]
    indent = min(
        (len(code) - len(code.lstrip()) for _, code in source if code.strip()),
        default=0,
    )
    lines: list[Line] = []
    for number, code in source:
        here = number == frame.line
        label = f"{mark if here else '':>{LABEL - 5}}{number:>5}"
        lines.append(
            (
                (f"  {label}  ", "accent" if here else "faint"),
                (code[indent:], "strong" if here else "muted"),
            )
        )
    return lines


def finding_issue(board: Board, finding: Merged) -> str:
    """Return what is known of a finding in Markdown, to be pasted into an issue."""
    entry, last = board.entry(finding), board.last
    facts = [f"- kind: {finding.kind} ({finding.severity})"]
    if entry is not None and last is not None:
        since, lasts = clock(utc_time(entry.since)), duration(entry.lasts(last.at))
        older = "at least " if entry.since == board.found.began_at else ""
        over = "" if entry.over is None else f", over {clock(utc_time(entry.over))}"
        facts.append(f"- since: {older}{since} ({older}{lasts}){over}")
    if finding.pool:
        facts.append(f"- pool: {finding.pool}")
    if finding.who:
        facts.append(f"- processes: {finding.who}")
    facts += [f"- call site: `{site.file}:{site.line}`" for site in finding.sites]
    parts = [
        f"### {finding.text}",
        "\n".join(facts),
        f"**Proof:** {finding.proof}",
        f"**Remedy:** {finding.remedy}" if finding.remedy else "",
        f"**Leads to:** {_leads(board, finding)}" if finding.leads_to else "",
        _holds(finding),
    ]
    return neutral("\n\n".join(part for part in parts if part), lines=True) + "\n"


def _holds(finding: Merged) -> str:
    """A table of its holds."""
    if not finding.holds:
        return ""
    rows = ["| process | call site | held | verdict | backend |", "|-|-|-|-|-|"]
    for process, hold in finding.holds[:_MAX_HOLDS]:
        site = call_site(hold).replace("|", "/")
        held, backend = duration(hold.held_s), hold.backend_pid or "-"
        rows.append(f"| {process.pid} | {site} | {held} | {hold.verdict} | {backend} |")
    more = len(finding.holds) - _MAX_HOLDS
    if more > 0:
        rows.append(f"\nand {plural(more, 'more hold')}")
    return "\n".join(rows)
