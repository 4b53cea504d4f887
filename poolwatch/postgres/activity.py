"""One statement a refresh: what the server says of itself and of the pids asked for.

Runs inside the instrumented application as well as in the viewer, over any driver of
the application's choice: a DBAPI cursor is all it needs.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from poolwatch.errors import ServerViewError
from poolwatch.model import ServerRow
from poolwatch.protocol.readings import Backend, ServerReading
from poolwatch.text.masking import mask_literals

STATEMENT_TIMEOUT_S = 2.0

_SETTINGS = {
    "search_path": "pg_catalog",  # nobody's look-alike tables or operators
    "application_name": "poolwatch",
    "statement_timeout": f"{STATEMENT_TIMEOUT_S:.0f}s",
    "lock_timeout": "1s",
    "idle_session_timeout": "60s",  # a connection we lost sight of ends by itself
    "default_transaction_read_only": "on",
}
_SYSTEM = "(SELECT CAST(system_identifier AS text) FROM pg_catalog.pg_control_system())"
_HIDDEN = "<insufficient privilege>"
_LARGEST_PID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Access:
    """What a prepared connection may do."""

    identify: bool
    """Whether the role may read the system identifier (some managed servers refuse)."""


def prepare(cursor: Any, backend_pid: int | None) -> Access:
    """Bound what this connection can cost; one statement, once per connection.

    ``backend_pid`` is what the driver believes. If the server disagrees there is a
    pooler in between: its server connections are shared with the application, so
    nothing is set on them, and ServerViewError says that no row can be told apart.
    A pid of None counts as such.
    """
    pid = "pg_catalog.pg_backend_pid()"
    settings = ", ".join(
        f"CASE WHEN {pid} = {int(backend_pid or 0)}"
        f" THEN pg_catalog.set_config('{name}', '{value}', false) END"
        for name, value in _SETTINGS.items()
    )
    cursor.execute(
        f"SELECT {pid}, pg_catalog.has_function_privilege("
        f"'pg_catalog.pg_control_system()', 'EXECUTE'), {settings}"
    )
    server_pid, identify, *_ = _values(cursor.fetchone())
    if server_pid != backend_pid:
        raise ServerViewError(
            "the connection goes through a pooler such as PgBouncer, which hides whose "
            "session is whose"
        )
    return Access(identify=bool(identify))


def read(cursor: Any, pids: Collection[int], access: Access) -> ServerReading:
    """Read the server and the sessions ``pids``, and who blocks them.

    Raises what the driver raises. Statements come back masked. A session that the
    role may not see has an age and a row of None.
    """
    started = time.perf_counter()
    cursor.execute(_statement(pids, access))
    (text,) = _values(cursor.fetchone())
    return parse(text, read_s=time.perf_counter() - started)


def parse(text: str, *, read_s: float | None = None) -> ServerReading:
    """Build the reading from the JSON that the statement returns."""
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


def _statement(pids: Collection[int], access: Access) -> str:
    # a pooler's invented pids may be any 32 bits: those are nobody's
    wanted = sorted({int(pid) for pid in pids if 0 < pid <= _LARGEST_PID})
    statement = _template().replace("/* pids */", ",".join(map(str, wanted)))
    return statement.replace(
        "NULL /* system */", _SYSTEM if access.identify else "NULL"
    )


@cache
def _template() -> str:
    """The statement without its comments and indentation."""
    source = files("poolwatch.postgres").joinpath("activity.sql").read_text("utf-8")
    return re.sub(r"\s+", " ", re.sub(r"--[^\n]*", "", source)).strip()


def _values(row: Any) -> tuple[Any, ...]:
    """A row as a tuple, also when the application's row factory makes it a mapping."""
    return tuple(row.values() if isinstance(row, Mapping) else row)


def _backend(row: dict[str, Any]) -> Backend:
    return Backend(
        pid=row["pid"],
        age_s=_age(row["age_s"]),
        client_port=row["client_port"],
        application=row["application"] or None,
        row=ServerRow(
            state=row["state"],
            state_age_s=_age(row["state_age_s"]),
            xact_age_s=_age(row["xact_age_s"]),
            wait_event=_wait_event(row["wait_event_type"], row["wait_event"]),
            query=_query(row["query"]),
            blocked_by=tuple(dict.fromkeys(row["blocked_by"] or ())),
        ),
    )


def _age(seconds: float | None) -> float | None:
    # stamped after our own look at the clock: it has happened just now
    return None if seconds is None else max(0.0, float(seconds))


def _wait_event(kind: str | None, event: str | None) -> str | None:
    return f"{kind}:{event}" if kind and event else None


def _query(text: str | None) -> str | None:
    return mask_literals(text) if text and text != _HIDDEN else None
