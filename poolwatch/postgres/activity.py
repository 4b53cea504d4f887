"""The one query per refresh: facts about the server, and the requested sessions.

Runs in the instrumented application as well as in the viewer, with any DBAPI cursor.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from poolwatch.model import Backend, ServerRow
from poolwatch.protocol.records import ServerReading
from poolwatch.text.masking import mask_literals

_SYSTEM = "(SELECT CAST(system_identifier AS text) FROM pg_catalog.pg_control_system())"
_HIDDEN = "<insufficient privilege>"
_MAX_PID = 2**31 - 1
MAX_SESSIONS = 1000
"""Sessions of a reading, unless more were asked for by their pids."""


def read(
    cursor: Any,
    pids: Collection[int],
    idle: Collection[int] = (),
    everyone: bool = False,
    *,
    identify: bool,
) -> ServerReading:
    """Read the server, the sessions ``pids`` and the sessions that block them.

    ``idle``: further sessions, read if they are in a transaction, have advisory locks
    or sent LISTEN last. ``everyone``: also all other clients of the databases of all
    these sessions and of our own, up to MAX_SESSIONS. ``identify``: the role may read
    the system identifier.

    Raises the errors of the driver. Literals in statements are masked. A session that
    the role may not see has None as age and in its row.
    """
    started = time.perf_counter()
    cursor.execute(_statement(pids, idle, everyone, identify=identify))
    (text,) = values_of(cursor.fetchone())
    reading = parse(text, read_s=time.perf_counter() - started)
    return reading if everyone else replace(reading, left_out=None)


def parse(text: str, *, read_s: float | None = None) -> ServerReading:
    """Parse the JSON that the query returns; ``address`` is the server's own end."""
    found = json.loads(text)
    host = found["host"]
    return ServerReading(
        identity=f"{found['system'] or ''}/{found['started']}",
        version=found["version"].split()[0],
        sessions=found["sessions"],
        max_connections=found["max_connections"],
        backends=tuple(_backend(row) for row in found["backends"]),
        address=None if host is None else tcp_end(host, found["port"]),
        read_s=read_s,
        reserved=found["reserved"],
        up_s=_age(found["up_s"]),
        left_out=found["left_out"],
    )


def tcp_end(host: str, port: int) -> str:
    """One end of a TCP connection as text: ``10.0.0.5:5432``, ``[::1]:5432``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def values_of(row: Any) -> tuple[Any, ...]:
    """A row as a tuple, even if the application's row factory makes mappings."""
    return tuple(row.values() if isinstance(row, Mapping) else row)


def _statement(
    pids: Collection[int], idle: Collection[int], everyone: bool, *, identify: bool
) -> str:
    statement = _template().replace("/* pids */", _listed(pids))
    statement = statement.replace("/* idle */", _listed(idle))
    statement = statement.replace("/* most */", str(MAX_SESSIONS))
    if everyone:
        statement = statement.replace("false /* everyone */", "true")
    return statement.replace("NULL /* system */", _SYSTEM if identify else "NULL")


def _listed(pids: Collection[int]) -> str:
    # a pooler may invent any 32-bit pid; backends have only positive ones
    return ",".join(map(str, sorted({int(pid) for pid in pids if 0 < pid <= _MAX_PID})))


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
        client=row["client"],
        advisory_locks=row["locks"] or 0,
        database=row["database"],
        user=row["user"],
        row=ServerRow(
            state=row["state"],
            state_age_s=_age(row["state_age_s"]),
            xact_age_s=_age(row["xact_age_s"]),
            wait_event=f"{kind}:{event}" if kind and event else None,
            query=mask_literals(query) if query and query != _HIDDEN else None,
            blocked_by=tuple(dict.fromkeys(row["blocked_by"] or ())),
            xmin_age=row["xmin_age"],
            waited_s=_age(row["waited_s"]),
        ),
    )


def _age(seconds: float | None) -> float | None:
    # negative if the timestamp is later than the query's clock reading
    return None if seconds is None else max(0.0, float(seconds))
