"""Settings of an instrumented pool, validated; and environment variables."""

from __future__ import annotations

import os

LONG_AFTER = 30.0
"""Default for the seconds after which a hold counts as long."""


class Settings:
    """Settings of one instrumented pool; see :func:`poolwatch.instrument`.

    Raises TypeError or ValueError for a wrong one.
    """

    __slots__ = (
        "comment",
        "long_after",
        "name",
        "prove_dropped",
        "server_view",
        "trace_waits",
    )

    def __init__(
        self,
        *,
        name: str | None = None,
        long_after: float = LONG_AFTER,
        server_view: bool = True,
        prove_dropped: bool = True,
        comment: bool = False,
        trace_waits: bool = False,
    ) -> None:
        self.name = name
        self.long_after = long_after
        self.server_view = server_view
        self.prove_dropped = prove_dropped
        self.comment = comment
        self.trace_waits = trace_waits
        self._check()

    def _check(self) -> None:
        if self.name is not None and (
            not isinstance(self.name, str) or not self.name.strip()
        ):
            raise TypeError(f"name must be a non-empty string, not {self.name!r}")
        if isinstance(self.long_after, bool) or not isinstance(
            self.long_after, int | float
        ):
            raise TypeError(f"long_after must be seconds, not {self.long_after!r}")
        if not self.long_after > 0:  # also rejects nan
            raise ValueError(
                f"long_after must be more than 0 seconds, not {self.long_after!r}"
            )
        for name in ("server_view", "prove_dropped", "comment", "trace_waits"):
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
    """``POOLWATCH_NAME``: the name of this process in all output."""
    return os.environ.get("POOLWATCH_NAME", "").strip() or None
