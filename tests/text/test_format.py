"""Durations, numbers and places in words; nothing hostile reaches a terminal."""

from __future__ import annotations

import pytest

from poolwatch.model import Frame
from poolwatch.text.format import (
    duration,
    fit,
    neutral,
    one_line,
    place,
    plural,
    short_time,
    width,
)

HOSTILE = (
    "a\x1b[31mb\x00\x07\r\n\t\x9b2J\u202e\u2066\ud800\ufeff[/b]\u2028é漢字e\u0301" * 3
)


def test_nothing_hostile_reaches_a_terminal():
    """Escape sequences, control and bidi characters become visible signs."""
    for made in (neutral(HOSTILE), one_line(HOSTILE), place(Frame(HOSTILE, 1, "f"))):
        assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in made)
        assert not set(made) & set("\u202e\u2066\ud800\ufeff\u2028")
        made.encode("utf-8")
    assert neutral("a\n\tb", lines=True) == "a\n    b"


@pytest.mark.parametrize("cells", [1, 2, 3, 7, 20, 80])
def test_fit_is_exact(cells):
    """A text takes exactly the cells it is given, wide characters included."""
    for text in ("", "abc", "漢字漢字", "a漢b字c", "e\u0301" * 10, one_line(HOSTILE)):
        assert width(fit(text, cells)) == cells


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("हिन्दी", 3),
        ("งานที่", 4),
        ("\u1112\u1161\u11ab", 2),
        ("a\u200db", 2),
        ("か\u3099", 2),
    ],
)
def test_marks_and_joiners_take_no_cell(text, cells):
    assert width(text) == cells


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"), (0, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"),
        (59.6, "1m00s"), (3599.6, "1h00m"), (86399.9, "1d00h"), (1e9, "11574d01h"),
        (-1, "0.0s"),
    ],
)  # fmt: skip
def test_duration(seconds, said):
    """Ages in at most two units, without a jump between them."""
    assert duration(seconds) == said


def test_other_words():
    """Latencies and numbers of things."""
    assert [short_time(s) for s in (None, 2e-6, 0.0034, 0.99951, 12.3)] == [
        "-", "2 µs", "3.4 ms", "1 s", "12.3 s",
    ]  # fmt: skip
    assert (plural(1, "hold"), plural(0, "hold")) == ("1 hold", "0 holds")
    assert place(None) == "?"
    assert place(Frame("C:\\app\\billing\\export.py", 8, "f")) == "billing/export.py:8"
