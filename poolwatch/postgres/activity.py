"""The one query per refresh: facts about the server, and the requested sessions.

Runs in the instrumented application as well as in the viewer, with any DBAPI cursor.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from poolwatch.model import ServerRow
from poolwatch.protocol.records import Backend, ServerReading
from poolwatch.text.masking import mask_literals

_SYSTEM = "(SELECT CAST(system_identifier AS text) FROM pg_catalog.pg_control_system())"
_HIDDEN = "<insufficient privilege>"
_MAX_PID = 2**31 - 1


def read(cursor: Any, pids: Collection[int], *, identify: bool) -> ServerReading:
    """Read the server, the sessions ``pids`` and the sessions that block them.

    ``identify``: the role may read the system identifier. Raises the errors of the
    driver. Literals in statements are masked. A session that the role may not see has
    None as age and in its row.
    """
    started = time.perf_counter()
    cursor.execute(_statement(pids, identify=identify))
    (text,) = values_of(cursor.fetchone())
    return parse(text, read_s=time.perf_counter() - started)


def parse(text: str, *, read_s: float | None = None) -> ServerReading:
    """Parse the JSON that the query returns."""
    found = json.loads(text)
    return ServerReading(
        identity=f"{found['system'] or ''}/{found['started']}",
        version=found["version"].split()[0],
        sessions=found["sessions"],
        max_connections=found["max_connections"],
        backends=tuple(_backend(row) for row in found["backends"]),
        read_s=read_s,
        reserved=found["reserved"],
        up_s=_age(found["up_s"]),
    )


def values_of(row: Any) -> tuple[Any, ...]:
    """A row as a tuple, even if the application's row factory makes mappings."""
    return tuple(row.values() if isinstance(row, Mapping) else row)


def _statement(pids: Collection[int], *, identify: bool) -> str:
    # a pooler may invent any 32-bit pid; backends have only positive ones
    wanted = sorted({int(pid) for pid in pids if 0 < pid <= _MAX_PID})
    statement = _template().replace("/* pids */", ",".join(map(str, wanted)))
    return statement.replace("NULL /* system */", _SYSTEM if identify else "NULL")


@cache
def _template() -> str:
    """The query without its comments and indentation."""
    source = files("poolwatch.postgres").joinpath("activity.sql").read_text("utf-8")
    return re.sub(r"\s+", " ", re.sub(r"--[^\n]*", "", source)).strip()


def _backend(row: dict[str, Any]) -> Backend:
    kind, event = row["wait_event_type"], row["wait_event"]
    query = row["query"]
    return Backend(
        pid=row["pid"],
        age_s=_age(row["age_s"]),
        client_port=row["client_port"],
        application=row["application"] or None,
        row=ServerRow(
            state=row["state"],
            state_age_s=_age(row["state_age_s"]),
            xact_age_s=_age(row["xact_age_s"]),
            wait_event=f"{kind}:{event}" if kind and event else None,
            query=mask_literals(query) if query and query != _HIDDEN else None,
            blocked_by=tuple(dict.fromkeys(row["blocked_by"] or ())),
        ),
    )


def _age(seconds: float | None) -> float | None:
    # negative if the timestamp is later than the query's clock reading
    return None if seconds is None else max(0.0, float(seconds))
