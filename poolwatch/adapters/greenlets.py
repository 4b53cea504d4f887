"""The greenlet that is running: under asyncio SQLAlchemy runs its code in one."""

from __future__ import annotations

from sys import modules
from typing import Any


def current_greenlet() -> Any:
    """Return it; None where nobody has loaded the library: then there are none."""
    library = modules.get("greenlet")
    return None if library is None else library.getcurrent()
