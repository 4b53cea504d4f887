"""Whom a session waits for, whom it holds up, and who goes on if it ends."""

from __future__ import annotations

from collections.abc import Sequence

from poolwatch.diagnosis.blocking import Node
from poolwatch.diagnosis.lock_waits import in_words
from poolwatch.text.format import call_site, duration, neutral, place, plural
from poolwatch.tui.draw.line import Line, labelled
from poolwatch.tui.state.board import Board

_NAMED = 3
"""Most sessions that a line names."""


def lock_lines(
    board: Board, node: Node | None, cells: int, *, brief: bool = False
) -> list[Line]:
    """Draw the place of a session among the lock waits; ``brief``: in a line or two."""
    if node is None or node.key not in board.trees.places:
        return []
    if brief:
        return _brief_lines(board, node, cells)
    lines: list[Line] = []
    above = board.trees.above(node.key)
    for each in above[:1]:
        lines += _part("blocked by", "warn", in_words(each.session), cells)
    if node.also:
        pids = ", ".join(str(pid or "a prepared transaction") for pid in node.also)
        lines += _part("and by", "warn", pids, cells)
    if len(above) > 1:
        steps = f"{in_words(above[-1].session)}, {len(above)} levels above"
        lines += _part("root", "bad", steps, cells)
    if node.holds_up:
        below = board.trees.below(node.key)
        session = board.sessions.get(node.key)
        if session is not None and session.lock is not None:
            ago = duration(session.lock.ago_s)
            text = f"requested at {place(session.site)} {ago} ago, not released since"
            lines += _part(
                "lock", "warn", f"{text}; a return does not release it", cells
            )
        lines += _part("holds up", "bad", _named(below), cells)
        lines += _part("if it ends", "good", _freed(board, node), cells)
    return lines


def _brief_lines(board: Board, node: Node, cells: int) -> list[Line]:
    lines: list[Line] = []
    parent = board.trees.parent(node.key)
    if parent is not None:
        lines += _part("blocked by", "warn", in_words(parent.session), cells)[:1]
    if node.holds_up:
        count = plural(node.holds_up, "session")
        text = f"{count}; if it ends, {_freed(board, node)}"
        lines += _part("holds up", "bad", text, cells)[:1]
    return lines


def _freed(board: Board, node: Node) -> str:
    freed, below = board.trees.freed(node.key), node.holds_up
    if len(freed) == below:
        return "all of them can go on" if below > 1 else "it can go on"
    if not freed:
        return "none can go on: each waits for others, too"
    others = below - len(freed)
    wait = "waits" if others == 1 else "wait"
    return f"{len(freed)} can go on; {others} more {wait} for others, too"


def _named(nodes: Sequence[Node]) -> str:
    words = [_brief(node) for node in nodes[:_NAMED]]
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return f"{plural(len(nodes), 'session')}: {', '.join(words)}{more}"


def _brief(node: Node) -> str:
    """Name a session in few words: ``21999 shop/cart.py:14 for 2m54s``."""
    session = node.session
    name = "?"
    if session.hold is not None:
        name = call_site(session.hold)
    elif session.backend is not None:
        name = f'"{session.backend.application or session.backend.user or "?"}"'
    since = f" for {duration(session.row.state_age_s)}" if session.row else ""
    return neutral(f"{session.pid} {name}{since}")


def _part(label: str, ink: str, text: str, cells: int) -> list[Line]:
    return labelled(f"  {label:<12}", text, cells, 3, label_ink=ink)
