"""The ledger's question whether running code still uses a connection."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any


def in_use(connections: Sequence[Any], several: Collection[int]) -> list[int]:
    """Implement the ledger's ``InUse``; the search is imported when it is needed.

    That is at the first nested request.
    """
    if sys.is_finalizing():  # no import is possible any more
        return []
    from poolwatch.diagnosis.references.own_stack import used_by_running_code

    return used_by_running_code(connections, several)
