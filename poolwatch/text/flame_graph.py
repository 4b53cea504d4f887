"""Stacks with their seconds, in the formats of flame graph viewers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from poolwatch.model import Frame
from poolwatch.text.format import one_line, place

Seconds = Mapping[tuple[Frame, ...], float]
"""By stack, outermost frame first; a frame without a file is a label."""

SPEEDSCOPE_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def speedscope(stacks: Seconds, name: str, exporter: str) -> str:
    """Return the JSON document of speedscope, the longest stack first."""
    ordered = _ordered(stacks)
    frames = dict.fromkeys(frame for stack, _ in ordered for frame in stack)
    indexes = {frame: number for number, frame in enumerate(frames)}
    profile = {
        "type": "sampled",
        "name": name,
        "unit": "seconds",
        "startValue": 0,
        "endValue": sum(seconds for _, seconds in ordered),
        "samples": [[indexes[frame] for frame in stack] for stack, _ in ordered],
        "weights": [seconds for _, seconds in ordered],
    }
    return json.dumps(
        {
            "$schema": SPEEDSCOPE_SCHEMA,
            "shared": {"frames": [_speedscope_frame(frame) for frame in indexes]},
            "profiles": [profile],
            "name": name,
            "activeProfileIndex": 0,
            "exporter": exporter,
        }
    )


def collapsed(stacks: Seconds) -> Iterator[str]:
    """Yield the lines that flamegraph.pl reads: a stack, and its milliseconds.

    The viewers take whole numbers only. What rounding leaves goes into the next stack,
    so that the sum is right.
    """
    total, told = 0.0, 0
    for stack, seconds in _ordered(stacks):
        total += seconds * 1000
        value = round(total) - told
        told += value
        if value > 0:
            names = (_label(frame).replace(";", ",") for frame in stack)
            yield f"{';'.join(names)} {value}"


def _ordered(stacks: Seconds) -> list[tuple[tuple[Frame, ...], float]]:
    return sorted(stacks.items(), key=lambda each: (-each[1], each[0]))


def _speedscope_frame(frame: Frame) -> dict[str, str | int]:
    named: dict[str, str | int] = {"name": one_line(frame.function or frame.file)}
    if frame.file and frame.line:
        named |= {"file": one_line(frame.file, 4096), "line": frame.line}
    return named


def _label(frame: Frame) -> str:
    """``load_cart (orders/repo.py:55)``."""
    name = one_line(frame.function or frame.file)
    return f"{name} ({place(frame)})" if frame.file and frame.line else name
