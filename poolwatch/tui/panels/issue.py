"""What is known of a hold, a wait or a finding as Markdown, to be pasted into an issue.

It says what the screen says, and nothing more: statements are masked, URLs left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from poolwatch.diagnosis.merging import Merged
from poolwatch.model import Finding, Frame, Hold, Process
from poolwatch.text.format import (
    call_site,
    clock,
    duration,
    lasts,
    neutral,
    plural,
    utc_time,
)
from poolwatch.text.incident_snapshots import date_and_time
from poolwatch.text.naming import holder_name, process_name
from poolwatch.tui.draw.line import plain
from poolwatch.tui.panels.detail import facts_of, found_on, statement_of
from poolwatch.tui.panels.finding_detail import leads_in_words
from poolwatch.tui.panels.spots import use_age
from poolwatch.tui.panels.wait_detail import holder_lines, wait_facts, waiting_findings
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import Row
from poolwatch.tui.state.wait_rows import WaitGroup

_MAX_HOLDS = 20
"""Most holds that an issue names."""
_Facts = Iterable[tuple[str, str]]


def hold_issue(board: Board, row: Row, count: int = 1) -> str:
    """Return what is known of a hold; ``count``: how many are like it."""
    hold = row.hold
    held, pool = lasts(hold), row.pool_name
    alike = f" ({plural(count, 'hold')} like it)" if count > 1 else ""
    title = f"{row.verdict}: {call_site(hold)} holds a connection of {pool} for {held}"
    facts = [(name, value) for name, value, _ in facts_of(row)]
    if hold.unused_s is not None:
        facts.append(("last used", use_age(board, row)))
    server = hold.server
    if server is not None:
        state = f"{server.state} for {duration(server.state_age_s)}"
        facts.append(("backend", f"{hold.backend_pid}, {state}"))
        facts.append(("transaction", duration(server.xact_age_s)))
        facts.append(("waits for", server.wait_event or "-"))
    evidence = [("evidence", each) for each in hold.evidence]
    statement = statement_of(hold)
    return _joined([
        f"### {title}{alike}",
        _list([*_when(board), *facts, *evidence]),
        *map(_finding, found_on(board, row)),
        _block(statement, "sql") if statement else "",
        _stack("Checked out here", hold.stack),
        _stack("Last used here", hold.used),
        _stack("The holder now", hold.now),
    ])  # fmt: skip


def wait_issue(board: Board, row: WaitGroup) -> str:
    """Return what is known of a wait, or of several of one call site."""
    wait = row.longest
    waited, count = lasts(wait), plural(len(row.waits), "request")
    title = f"{count} for a connection of {row.pool_name}, the longest for {waited}"
    facts = [(name, value) for name, value, _ in wait_facts(row)]
    holders = "\n".join(map(plain, holder_lines(board, row, 30)))
    return _joined([
        f"### {title}: {call_site(wait)}, {holder_name(wait)}",
        _list([*_when(board), *facts]),
        *map(_finding, waiting_findings(row)),
        _block(holders),
        _stack("The request", wait.stack),
    ])  # fmt: skip


def finding_issue(board: Board, finding: Merged) -> str:
    """Return what is known of a merged finding."""
    facts = [
        ("kind", f"{finding.kind} ({finding.severity})"),
        *_over_time(board, finding),
    ]
    facts += [("pool", finding.pool)] if finding.pool else []
    facts += [("processes", finding.who)] if finding.who else []
    facts += [("call site", f"{site.file}:{site.line}") for site in finding.sites]
    leads = leads_in_words(board, finding)
    return _joined([
        f"### {_text(finding.text)}",
        _list([*_when(board), *facts]),
        f"- proof: {_text(finding.proof)}\n- remedy: {_text(finding.remedy) or '-'}",
        f"Leads to: {_text(leads)}" if leads else "",
        _table(finding.holds),
    ])  # fmt: skip


def _over_time(board: Board, finding: Merged) -> _Facts:
    entry, last = board.entry(finding), board.last
    if entry is None or last is None:
        return []
    older = "at least " if entry.since == board.found.began_at else ""
    lasts = duration(entry.lasts(last.at))
    over = "" if entry.over is None else f", over {clock(utc_time(entry.over))}"
    return [("since", f"{clock(utc_time(entry.since))}, {older}{lasts}{over}")]


def _table(holds: Sequence[tuple[Process, Hold]]) -> str:
    """The holds that a finding is about."""
    if not holds:
        return ""
    lines = ["| process | call site | held | verdict | backend |", "|-|-|-|-|-|"]
    for process, hold in holds[:_MAX_HOLDS]:
        cells = (
            f"{process.pid} {process_name(process)}",
            call_site(hold),
            lasts(hold),
            hold.verdict,
            str(hold.backend_pid or "-"),
        )
        texts = (_text(cell).replace("|", "\\|") for cell in cells)
        lines.append(f"| {' | '.join(texts)} |")
    more = len(holds) - _MAX_HOLDS
    return "\n".join(lines) + (
        f"\n\nand {plural(more, 'hold')} more" if more > 0 else ""
    )


def _joined(parts: Sequence[str]) -> str:
    return neutral("\n\n".join(part for part in parts if part), lines=True) + "\n"


def _when(board: Board) -> _Facts:
    at = board.moment
    return [("as it was at", " ".join(date_and_time(at)).strip())] if at else []


def _list(facts: _Facts) -> str:
    return "\n".join(f"- {name}: {_code(value)}" for name, value in facts)


def _finding(finding: Finding) -> str:
    head = f"**{_text(finding.text)}** ({finding.severity}, {finding.kind})"
    return (
        f"{head}\n\n- proof: {_text(finding.proof)}\n- remedy: {_text(finding.remedy)}"
    )


def _text(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return re.sub(r"([\\`*<>\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _block(text: str, language: str = "") -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def _stack(title: str, frames: Sequence[Frame]) -> str:
    if not frames:
        return ""
    lines = "\n".join(f"{each.file}:{each.line} in {each.function}" for each in frames)
    return f"<details><summary>{title}</summary>\n\n{_block(lines)}\n\n</details>"
