"""What a user may set, checked at the door."""

from __future__ import annotations

import os
from dataclasses import dataclass

LONG_AFTER = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one instrumented pool; see :func:`poolwatch.instrument`."""

    name: str | None = None
    long_after: float = LONG_AFTER
    server_view: bool = True
    prove_dropped: bool = True

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError, in the user's words, for a wrong setting."""
        if self.name is not None and (
            not isinstance(self.name, str) or not self.name.strip()
        ):
            raise TypeError(f"name must be a text that is not empty, not {self.name!r}")
        if isinstance(self.long_after, bool) or not isinstance(
            self.long_after, int | float
        ):
            raise TypeError(f"long_after must be seconds, not {self.long_after!r}")
        if not self.long_after > 0:  # nan is not, either
            raise ValueError(
                f"long_after must be more than 0 seconds, not {self.long_after!r}"
            )
        for name in ("server_view", "prove_dropped"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, not {value!r}")


def disabled() -> bool:
    """Whether ``POOLWATCH_DISABLE`` switches everything off."""
    return os.environ.get("POOLWATCH_DISABLE", "").strip().lower() not in (
        "",
        "0",
        "false",
        "no",
    )


def process_name() -> str | None:
    """``POOLWATCH_NAME``: how this process is called in every face."""
    return os.environ.get("POOLWATCH_NAME", "").strip() or None
