"""Advice for people."""

from __future__ import annotations

from collections.abc import Iterable

from poolwatch.commands.advise.advise import Advice
from poolwatch.text.format import duration, one_line


def in_words(advice: Advice) -> str:
    """A few lines for one pool."""
    return "\n".join(_lines(advice))


def _lines(advice: Advice) -> Iterable[str]:
    head = (
        f"{advice.pool}: {advice.requests} requests in {duration(advice.seconds)} "
        f"({advice.rate:.1f} a second), held {duration(advice.held_s)} on average"
    )
    yield one_line(head)
    if advice.thin is not None:
        yield "  " + one_line(f"no advice on the size: {advice.thin}")
    for each in advice.recommendations:
        yield "  " + one_line(f"* {each.text}")
        yield "    " + one_line(f"because {each.why}")
        if each.line is not None:
            yield "    " + one_line(each.line)
    if advice.thin is None and not advice.recommendations:
        yield "  nothing to change"
