"""Draws stacks: application frames with their source, library frames folded."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from poolwatch.model import Frame
from poolwatch.stacks.compare import user_frames
from poolwatch.text.format import neutral, place, plural
from poolwatch.tui.draw.line import Line
from poolwatch.tui.draw.source_lines import around

Stack = tuple[Frame, ...]
"""Innermost frame first."""
MOST = 60
"""Maximum number of frames that are drawn."""
_INDENT = " " * 11


def shared(stack: Stack, other: Stack) -> int:
    """Return the number of outer frames that two stacks have in common."""
    same = 0
    for one, two in zip(reversed(stack), reversed(other), strict=False):
        if one != two:
            break
        same += 1
    return same


def stack_lines(
    frames: Sequence[Frame],
    site: Frame | None,
    *,
    unfold: bool,
    own: Collection[Frame] | None = None,
) -> list[Line]:
    """Draw a stack, innermost frame first, the call site emphasised.

    ``own`` are the application's frames; by default they are found in the stack.
    """
    own = user_frames(frames, site) if own is None else own
    lines: list[Line] = []
    folded = 0
    for frame in frames[:MOST]:
        library = frame not in own and frame != site
        if library and not unfold:
            folded += 1
            continue
        lines += _folded(folded)
        folded = 0
        lines += _frame(frame, library=library, emphasised=frame == site)
    lines += _folded(folded)
    if len(frames) > MOST:
        lines.append(((f"  … {len(frames) - MOST} more frames", "muted"),))
    return lines


def _folded(count: int) -> list[Line]:
    if not count:
        return []
    return [
        ((f"    … {plural(count, 'library frame')}", "faint"), ("  f unfolds", "faint"))
    ]


def _frame(frame: Frame, *, library: bool, emphasised: bool) -> list[Line]:
    ink = "title" if emphasised else "muted" if library else "text"
    mark = "▸ " if emphasised else "  "
    head: Line = (
        (f"  {mark}", "accent"),
        (place(frame, 3), ink),
        ("  in ", "muted"),
        (neutral(frame.function[:80]), "muted" if library else "text"),
    )
    if emphasised:
        return [head, *source_lines(around(frame.file, frame.line, 2, 2), frame.line)]
    source = around(frame.file, frame.line, 0, 0)
    return [
        head,
        *(((_INDENT, "faint"), (code.strip(), "muted")) for _, code in source),
    ]


def source_lines(source: Sequence[tuple[int, str]], here: int) -> list[Line]:
    """Draw numbered lines of source without their common indentation."""
    indent = min((_indent(code) for _, code in source if code.strip()), default=0)
    return [_code(number, code[indent:], number == here) for number, code in source]


def _indent(code: str) -> int:
    return len(code) - len(code.lstrip())


def _code(number: int, code: str, here: bool) -> Line:
    pointer = "→" if here else " "
    return (
        (f"    {pointer}{number:>5}  ", "accent" if here else "faint"),
        (code, "strong" if here else "muted"),
    )
