"""The limits that the markers of a test set."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from poolwatch.model import Frame
from poolwatch.stacks.compare import user_frames
from poolwatch.testing.markers import ALLOW, LIMIT
from poolwatch.testing.owners import Owner
from poolwatch.text.format import duration, one_line, place, plural

T = TypeVar("T")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min)?\s*")
_ALLOW, _LIMIT = (each.partition(": ")[0] for each in (ALLOW, LIMIT))
_MAX_STACKS = 8
_FRAMES = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one test; None means no limit."""

    leaks: int | None = None
    """The exact number of leaks that ``allow_pool_leaks`` expects."""
    reason: str = ""
    checkouts: int | None = None
    hold_s: float | None = None

    @property
    def needs_stacks(self) -> bool:
        """Whether the stacks of the test's holds must be recorded."""
        return self.checkouts is not None or self.hold_s is not None

    def violation(self, owner: Owner) -> str | None:
        """Describe the first limit that the test exceeds, with stacks."""
        if self.checkouts is not None and owner.peak > self.checkouts:
            head = (
                f"{owner.name} held {plural(owner.peak, 'connection')} at once, "
                f"limit_pool(checkouts={self.checkouts})"
            )
            return "\n".join([one_line(head), *stack_lines(owner.at_peak)])
        longest, stack = owner.longest
        if self.hold_s is not None and longest > self.hold_s:
            head = (
                f"{owner.name} held a connection for {_duration_text(longest)}, "
                f'limit_pool(hold="{_duration_text(self.hold_s)}")'
            )
            return "\n".join([one_line(head), *stack_lines([stack])])
        return None


NO_LIMITS = Limits()


def limits_of(item: pytest.Item) -> Limits:
    """Read the markers of a test; an invalid marker fails the test."""
    allow = item.get_closest_marker("allow_pool_leaks")
    limit = item.get_closest_marker("limit_pool")
    if allow is None and limit is None:
        return NO_LIMITS
    leaks, reason = (
        _parsed(allow, _parse_allow, _ALLOW) if allow is not None else (None, "")
    )
    checkouts, hold_s = (
        _parsed(limit, _parse_limit, _LIMIT) if limit is not None else (None, None)
    )
    return Limits(leaks, reason, checkouts, hold_s)


def seconds(value: object) -> float:
    """Parse "250 ms", "1.5 s", "2 min" or a number of seconds; raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f'{value!r} is not a duration: write "250 ms", "1.5 s" or "2 min"'
        )
    return float(match[1]) * _UNITS[match[2] or "s"]


def _duration_text(value: float) -> str:
    """Format a duration as it is written in the marker."""
    return f"{value * 1e3:.3g} ms" if value < 1 else duration(value)


def _parsed(mark: Any, parse: Callable[..., T], usage: str) -> T:
    """The value of a marker, whose arguments are those of ``parse``."""
    try:
        given = inspect.signature(parse).bind(*mark.args, **mark.kwargs)
    except TypeError as error:
        pytest.fail(f"{mark.name}: {error}; write {usage}", pytrace=False)
    return parse(*given.args, **given.kwargs)


def _parse_allow(n: Any = 1, *, reason: Any = None) -> tuple[int, str]:
    if not isinstance(reason, str) or not reason.strip():
        pytest.fail(f"allow_pool_leaks needs a reason: {_ALLOW}", pytrace=False)
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        pytest.fail(f"allow_pool_leaks: n must be 1 or more, not {n!r}", pytrace=False)
    return n, reason


def _parse_limit(
    checkouts: Any = None, hold: Any = None
) -> tuple[int | None, float | None]:
    if checkouts is None and hold is None:
        pytest.fail(f"limit_pool needs a limit: {_LIMIT}", pytrace=False)
    if checkouts is not None and (
        not isinstance(checkouts, int) or isinstance(checkouts, bool) or checkouts < 0
    ):
        pytest.fail(
            f"limit_pool: checkouts must be a non-negative integer, not {checkouts!r}",
            pytrace=False,
        )
    try:
        return checkouts, None if hold is None else seconds(hold)
    except ValueError as error:
        pytest.fail(f"limit_pool: hold={error}", pytrace=False)


def stack_lines(stacks: Sequence[tuple[Frame, ...]]) -> list[str]:
    """One line for each stack of a hold, at most 8."""
    lines = []
    for stack in stacks[:_MAX_STACKS]:
        frames = user_frames(stack)[:_FRAMES]
        names = [f"{place(frame)} in {frame.function}" for frame in frames]
        lines.append("  " + one_line("held from " + ", called from ".join(names)))
    if len(stacks) > _MAX_STACKS:
        lines.append(f"  ... and {len(stacks) - _MAX_STACKS} more")
    return lines
