"""The greenlet that is running: under asyncio SQLAlchemy runs its code in one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

current_greenlet: Callable[[], Any] | None = None
"""None without the library: then there are no async engines."""
with suppress(ImportError):
    from greenlet import getcurrent

    current_greenlet = getcurrent
