"""What the modules of faults share: how a fault is written down."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

Outcome = tuple[str, str, bool]
"""What was done, what was seen, and whether all is well."""
Fault = Callable[[float], Outcome]
"""Takes the length of the run: 1 is the usual one."""


class Skipped(Exception):  # noqa: N818 - it is none
    """A fault that cannot be made on this machine, with the reason."""
