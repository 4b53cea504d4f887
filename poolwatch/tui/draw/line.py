"""Styled lines as plain data, so that panels are tested without a terminal.

A *run* is a text and the name of its ink, a style. A *line* is a tuple of runs. The
style sheet (``poolwatch.tcss``) defines the inks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poolwatch.text.format import fit, neutral, width

Run = tuple[str, str]
Line = tuple[Run, ...]

INKS = (
    "text",
    "strong",
    "muted",
    "faint",
    "accent",
    "title",
    "bad",
    "warn",
    "good",
    "keyword",
    "mark",
)
"""All inks; the style sheet has one rule for each."""

BLANK: Line = ()


def length(line: Iterable[Run]) -> int:
    """Return the width of a line in terminal cells."""
    return sum(width(text) for text, _ in line)


def right(text: str, cells: int) -> str:
    """Right-align a text, such as a number, in ``cells``; cut it if it is too long."""
    missing = cells - width(text)
    return " " * missing + text if missing >= 0 else fit(text, cells)


def tail(text: str, cells: int) -> str:
    """Cut a text on the left: the end of a path matters more than its beginning."""
    if width(text) <= cells:
        return fit(text, cells)
    shown: list[str] = []
    used = 1
    for character in reversed(text):
        used += width(character)
        if used > cells:
            break
        shown.append(character)
    return fit("…" + "".join(reversed(shown)), cells)


def crop(line: Line, cells: int) -> Line:
    """Cut a line to at most ``cells``; a text that is cut ends in an ellipsis."""
    runs: list[Run] = []
    room = cells
    for text, ink in line:
        size = width(text)
        if size > room:
            if room > 0:
                runs.append((fit(text, room), ink))
            break
        runs.append((text, ink))
        room -= size
    return tuple(runs)


def spread(left: Line, right_: Line, cells: int) -> Line:
    """Put one group of runs at the left edge and one at the right edge."""
    gap = cells - length(left) - length(right_)
    if gap < 1:
        return crop(left, cells)
    return (*left, (" " * gap, "text"), *right_)


def rule(title: Line, note: Line, cells: int) -> Line:
    """Return a section's head: title, horizontal rule, and a note at the right edge."""
    head = (("  ", "text"), *crop(title, max(cells - 6, 1)), (" ", "text"))
    gap = cells - length(head) - length(note) - 3
    if gap < 2:
        return (*head, ("─" * max(cells - length(head) - 2, 0), "faint"))
    return (*head, ("─" * gap, "faint"), (" ", "text"), *note, ("  ", "text"))


def wrap(text: str, cells: int, limit: int = 6) -> list[str]:
    """Wrap a text at spaces into at most ``limit`` lines."""
    cells = max(cells, 8)
    lines: list[str] = []
    current = ""
    for word in neutral(text[: cells * (limit + 1)]).split():
        rest = word
        candidate = f"{current} {rest}" if current else rest
        if width(candidate) <= cells:
            current = candidate
            continue
        if current:
            lines.append(current)
        end = cells if rest.isascii() else cells // 2
        while width(rest) > cells:
            lines.append(rest[:end])
            rest = rest[end:]
        current = rest
    if current:
        lines.append(current)
    if len(lines) > limit:
        lines = [*lines[: limit - 1], fit(lines[limit - 1] + " …", cells).rstrip()]
    return lines


def labelled(
    label: str,
    text: str,
    cells: int,
    limit: int,
    *,
    label_ink: str = "muted",
    ink: str = "text",
) -> list[Line]:
    """Wrap a text behind a label, into at most ``limit`` lines; the others indented."""
    blank = " " * len(label)
    parts = wrap(text, cells - len(label), limit)
    return [
        ((blank if at else label, label_ink), (part, ink))
        for at, part in enumerate(parts)
    ]


def beside(left: Sequence[Line], right_: Sequence[Line], cells: int) -> list[Line]:
    """Arrange lines in two columns, the left one ``cells`` wide."""
    lines: list[Line] = []
    for at in range(max(len(left), len(right_))):
        one = crop(left[at], cells) if at < len(left) else BLANK
        other = right_[at] if at < len(right_) else BLANK
        pad = " " * (cells - length(one))
        lines.append((*one, (pad, "text"), *other) if other else one)
    return lines


def plain(line: Iterable[Run]) -> str:
    """Return the text of a line without its inks."""
    return "".join(text for text, _ in line)
