"""Frames of a terminal, put together to one SVG that plays them over and over again.

An SVG in a page may not load or run anything: the frames are groups, and CSS shows one
after the other. A line that is in several frames is drawn once and used again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import NamedTuple
from xml.etree import ElementTree as ET

from rich.cells import cell_len

LINE_HEIGHT = 24.4
CELL_WIDTH = 12.2
FONTS = "ui-monospace, DejaVu Sans Mono, Menlo, monospace"
_NAMESPACE = "http://www.w3.org/2000/svg"
_SVG = f"{{{_NAMESPACE}}}"
_BLANK = "\N{NO-BREAK SPACE}"
_RULE = re.compile(r"\.\S+-(r\d+) \{ (.*?);? ?\}")


class Frame(NamedTuple):
    """What is on the screen for a time."""

    svg: str
    """As Textual exports it."""
    seconds: float
    caption: str
    """What was pressed, or what is to be seen."""


def cast(frames: Sequence[Frame], title: str) -> str:
    """Return the frames as one SVG that plays for ever."""
    inks: dict[str, str] = {}
    lines: dict[str, str] = {}
    """By what is drawn: the names of styles and of lines."""
    exported = [ET.fromstring(frame.svg) for frame in frames]  # noqa: S314 - our own
    drawn = [_lines(svg, inks) for svg in exported]
    groups = []
    for number, (frame, content) in enumerate(zip(frames, drawn, strict=True)):
        uses = "".join(
            f'<use href="#{lines.setdefault(line, f"l{len(lines)}")}" '
            f'y="{at * LINE_HEIGHT:.1f}"/>'
            for at, line in content.items()
        )
        caption = f'<text class="caption" x="50%" y="27">{escape(frame.caption)}</text>'
        groups.append(
            f'<g id="f{number}" class="f">{caption}'
            f'<g transform="translate(9,41)">{uses}</g></g>'
        )
    shared = "\n".join(f'<g id="{name}">{line}</g>' for line, name in lines.items())
    styles = [f".{name}{{{rule}}}" for rule, name in inks.items()]
    return "\n".join(
        [
            f'<svg xmlns="{_NAMESPACE}" viewBox="{exported[0].get("viewBox")}">',
            f"<title>{escape(title)}</title>",
            "<style>",
            f"text{{font:20px {FONTS}}}",
            ".caption{font:bold 18px sans-serif;fill:#c5c8c6;text-anchor:middle}",
            *styles,
            *_timing([frame.seconds for frame in frames]),
            "</style>",
            f"<defs>{shared}</defs>",
            *_window(exported[0]),
            *groups,
            "</svg>\n",
        ]
    )


def _timing(seconds: Sequence[float]) -> list[str]:
    """Show one frame after the other; only the first one if motion is unwelcome."""
    whole, began = sum(seconds), 0.0
    shown, hidden = "{visibility:visible}", "{visibility:hidden}"
    rules = [f".f{hidden}#f0{shown}", "@media (prefers-reduced-motion:no-preference){"]
    for number, taken in enumerate(seconds):
        start, end = (f"{at / whole:.3%}" for at in (began, began + taken))
        before = f"0%{hidden}" if number else ""
        steps = f"{before}{start}{shown}{end}{hidden}100%{hidden}"
        rules += [
            f"@keyframes k{number}{{{steps}}}",
            f"#f{number}{{animation:k{number} {whole:g}s step-end infinite}}",
        ]
        began += taken
    return [*rules, "}"]


def _window(svg: ET.Element) -> list[str]:
    """Return the frame around the terminal, and its background."""
    border = svg.find(f"{_SVG}rect")
    assert border is not None
    width, height = (float(border.get(name, "0")) for name in ("width", "height"))
    dots = "".join(
        f'<circle cx="{26 + 22 * n}" cy="22" r="7" fill="{ink}"/>'
        for n, ink in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    outer = f'x="1" y="1" width="{width:g}" height="{height:g}" rx="8"'
    inner = f'x="9" y="41" width="{width - 18:g}" height="{height - 50:g}"'
    return [
        f'<rect fill="#292929" {outer}/>',
        f'<rect fill="{_background(svg)}" {inner}/>',
        dots,
    ]


def _background(svg: ET.Element) -> str:
    """Return the most frequent colour."""
    fills = Counter(rect.get("fill", "") for rect in svg.iter(f"{_SVG}rect"))
    return fills.most_common(1)[0][0]


def _lines(svg: ET.Element, inks: dict[str, str]) -> dict[int, str]:
    """Return each line of the terminal: its backgrounds and texts."""
    style = next(iter(svg.iter(f"{_SVG}style"))).text or ""
    rules = {name: rule.replace(" ", "") for name, rule in _RULE.findall(style)}
    found: dict[int, list[str]] = {}
    (matrix,) = (g for g in svg.iter(f"{_SVG}g") if "-matrix" in g.get("class", ""))
    terminal = next(g for g in svg.iter(f"{_SVG}g") if matrix in list(g))
    background = _background(svg)
    for at, x, cells, fill in _joined(terminal.findall(f"{_SVG}rect")):
        if fill != background:
            found.setdefault(at, []).append(
                f'<rect fill="{fill}" x="{x:g}" y="1.5" width="{cells:g}" '
                'height="24.65"/>'
            )
    for text in matrix:
        at, words = _line_of(text), (text.text or "").rstrip(_BLANK)
        start = len(words) - len(words.lstrip(_BLANK))
        if words := words[start:]:
            x = float(text.get("x", "0")) + start * CELL_WIDTH
            rule = rules[text.get("class", "").rpartition("-")[2]]
            ink = inks.setdefault(rule, f"i{len(inks)}")
            found.setdefault(at, []).append(
                f'<text class="{ink}" x="{x:g}" y="20" '
                f'textLength="{cell_len(words) * CELL_WIDTH:g}">{escape(words)}</text>'
            )
    return {at: "".join(parts) for at, parts in sorted(found.items())}


def _line_of(element: ET.Element) -> int:
    return int(float(element.get("y", "0")) / LINE_HEIGHT)


def _joined(
    rects: Sequence[ET.Element],
) -> list[tuple[int, float, float, str]]:
    """Join backgrounds of one colour beside each other: line, x, width, colour."""
    joined: list[tuple[int, float, float, str]] = []
    for rect in rects:
        at, fill = _line_of(rect), rect.get("fill", "")
        x, cells = float(rect.get("x", "0")), float(rect.get("width", "0"))
        if joined and joined[-1][0] == at and joined[-1][3] == fill:
            _, start, before, _ = joined.pop()
            x, cells = start, before + cells
        joined.append((at, x, round(cells, 1), fill))
    return joined
