"""The contents of a terminal, as text."""

from __future__ import annotations

import pyte


def shown(screen: pyte.Screen) -> str:
    """All lines of the screen.

    pyte's own ``display`` fails where a wide character was overwritten by half.
    """
    lines = (screen.buffer[y] for y in range(screen.lines))
    return "\n".join(
        "".join(line[x].data for x in range(screen.columns)) for line in lines
    )
