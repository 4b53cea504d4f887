"""``dirty_return``: a connection went back to its pool with state that hurts others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from poolwatch.diagnosis.common import distinct_sites
from poolwatch.diagnosis.pool_options import options_of
from poolwatch.diagnosis.sessions import (
    IN_TRANSACTION,
    Sessions,
    idle_with_rows,
    server_of,
)
from poolwatch.model import Finding, Frame, Hold, IdleConnection, PoolStats, Process
from poolwatch.text.format import duration, place, plural

_SETTLED_S = 1.0
"""A return may take a moment: seconds after which its state counts."""
_COMMAND = re.compile(r"\s*(listen|commit)\b", re.IGNORECASE)
_MAX_NAMED = 6

_RELEASE = (
    "Release the lock on the same connection before it goes back "
    "(pg_advisory_unlock in a finally clause), or use pg_advisory_xact_lock, which "
    "ends with the transaction. A pool can also run pg_advisory_unlock_all() whenever "
    "a connection is returned."
)
State = Literal["lock", "transaction", "listen"]


def dirty_returns(process: Process, sessions: Sessions) -> list[Finding]:
    """The ``dirty_return`` findings of one process, one per pool, place and state."""
    groups: dict[tuple[str, State, Frame | None], list[IdleConnection]]
    groups = defaultdict(list)
    for idle, server in idle_with_rows(process):
        state = state_of(idle)
        if state is None or idle.declared or not _is_proven(idle, state):
            continue
        if sessions.get(server_of(process, server), idle.backend_pid).hold is None:
            groups[idle.pool, state, blamed_site(idle)].append(idle)
    pools = {pool.id: pool for pool in process.pools}
    return [
        _dirty_return(pools[pool], state, site, group)
        for (pool, state, site), group in groups.items()
        if pool in pools
    ]


def _is_proven(idle: IdleConnection, state: State) -> bool:
    """Whether the return is over: by its age, or because the pool lent it again."""
    if state == "lock" and _is_of_an_earlier_use(idle):
        return True
    return min(idle.returned_s, idle.unchanged_s) >= _SETTLED_S


def state_of(idle: IdleConnection) -> State | None:
    """The lock or transaction that the server proves to be open on the connection."""
    row = idle.server
    if row is None or idle.unchanged_s < 0.0:
        return None
    if (row.state or "").startswith(IN_TRANSACTION):
        return "transaction"
    if row.state != "idle":
        return None
    if idle.advisory_locks:  # without a transaction: session-level ones
        return "lock"
    # LISTEN begins with the commit: a rollback undoes it
    last = _COMMAND.match(row.query or "")
    if last and (last[1].lower() == "listen" or idle.listening):
        return "listen"
    return None


def blamed_site(idle: IdleConnection) -> Frame | None:
    """The call site that brought it back like that: of the lock, else the last one.

    None if other code may have used it since.
    """
    if _may_be_in_use(idle):
        return None
    if idle.lock is not None and state_of(idle) == "lock":
        return idle.lock.site
    return idle.site


def _may_be_in_use(idle: IdleConnection) -> bool:
    """Whether it may have been checked out again since the process was read.

    A backend that is idle without a lock or a transaction blocks nobody. If it is named
    as a blocker all the same, it got the lock after its row was read: the server
    evaluates ``pg_blocking_pids`` a moment later.
    """
    is_free = idle.server is not None and idle.server.state == "idle"
    return idle.unchanged_s < 0.0 or (is_free and state_of(idle) is None)


_STATES: dict[State, str] = {
    "lock": "with a session-level advisory lock",
    "transaction": "in an open transaction",
    "listen": "still listening for notifications",
}


def _dirty_return(
    pool: PoolStats,
    state: State,
    site: Frame | None,
    group: Sequence[IdleConnection],
) -> Finding:
    latest = min(group, key=lambda idle: idle.returned_s)
    many = "a connection" if len(group) == 1 else plural(len(group), "connection")
    pids = ", ".join(str(idle.backend_pid) for idle in group[:_MAX_NAMED])
    when = f"{duration(latest.returned_s)} ago"
    if state == "lock" and latest.lock and _is_of_an_earlier_use(latest):
        when = f"requested {duration(latest.lock.ago_s)} ago"
    return Finding(
        kind="dirty_return",
        severity="warning",
        pool=pool.id,
        text=f"{place(site)} returned {many} to pool {pool.name!r} {_STATES[state]}, "
        f"{when} (pid {pids})",
        proof=_proof(latest, state),
        remedy=_remedy(latest, state, pool),
        sites=distinct_sites(site),
    )


def _proof(idle: IdleConnection, state: State) -> str:
    pid, row = idle.backend_pid, idle.server
    used = f"{_last_used(idle)}, returned {duration(idle.returned_s)} ago"
    if state == "listen":
        return (
            f"its last statement was a LISTEN, and pg_stat_activity shows none since; "
            f"{used}"
        )
    if state == "transaction":
        age = row.xact_age_s if row else None
        earlier = (age or 0.0) > idle.returned_s + idle.held_s + _SETTLED_S
        return (
            f"pg_stat_activity: backend {pid} is {row and row.state}, its transaction "
            f"is {duration(age)} old; {used}"
            + (" (the transaction is older than that use)" if earlier else "")
        )
    requested = "the statement that requested it was not seen"
    if idle.lock is not None:
        requested = (
            f"requested at {place(idle.lock.sent or idle.lock.site)}, "
            f"{duration(idle.lock.ago_s)} ago"
        )
    return (
        f"pg_locks: backend {pid} holds {plural(idle.advisory_locks, 'advisory lock')} "
        f"without a transaction; {requested}; {used}"
    )


def release(pid: int) -> str:
    """The remedy for a session-level lock that comes back with its connection."""
    return f"{_RELEASE} {_end_now(pid)}"


def _end_now(pid: int) -> str:
    return f"To end it now: SELECT pg_terminate_backend({pid})."


def remedy_for_idle(idle: IdleConnection, process: Process) -> str:
    """The remedy for an idle connection that blocks others."""
    pool = next((pool for pool in process.pools if pool.id == idle.pool), None)
    return _remedy(idle, state_of(idle), pool)


def _remedy(idle: IdleConnection, state: State | None, pool: PoolStats | None) -> str:
    if state == "lock":
        return release(idle.backend_pid)
    now = _end_now(idle.backend_pid)
    if state == "listen":
        return (
            "UNLISTEN before the connection goes back: its next user gets the "
            "notifications. Or never return the listener's connection, and mark it as "
            'meant to be held: with poolwatch.long_hold("LISTEN ...").'
        )
    if state is None:
        return now
    is_sqlalchemy = (
        pool is not None and options_of(pool.extends or pool.kind).size == "pool_size"
    )
    option = "pool_reset_on_return=None, and for " if is_sqlalchemy else ""
    return (
        "Commit or roll back before the connection goes back. The pool did not roll "
        f"back: look for {option}a BEGIN that is sent as text in autocommit mode (the "
        f"driver does not know of that transaction). {now}"
    )


def idle_in_words(idle: IdleConnection, owner: Process, where: str = "") -> str:
    """Name an idle connection that blocks others. ``where``: the process, if needed."""
    if _may_be_in_use(idle):
        return used_just_now(idle, owner, where)
    in_it = " in a transaction" if state_of(idle) == "transaction" else ""
    return f"an idle {_named(idle, owner, where)}, {last_use(idle, in_it)}"


def last_use(idle: IdleConnection, state: str = "") -> str:
    """Say who used an idle connection last, and when it came back; ``state``: how."""
    return f"{_last_used(idle)}, returned{state} {duration(idle.returned_s)} ago"


def used_just_now(last: Hold | IdleConnection, owner: Process, where: str) -> str:
    """Name a connection whose user is not known any more; ``last`` was the last one.

    Without a row it was seen at another time than the session that waits for it.
    """
    when = "was used just now" if last.server else "may have had another user then"
    return f"a {_named(last, owner, where)} that {when}"


def _named(each: Hold | IdleConnection, owner: Process, where: str) -> str:
    name = next((pool.name for pool in owner.pools if pool.id == each.pool), "?")
    return f"connection of pool {name!r} ({where}pid {each.backend_pid})"


def _last_used(idle: IdleConnection) -> str:
    if idle.used is None:
        return f"last checked out at {place(idle.site)}"
    checked_out = f" (checked out at {place(idle.site)})"
    return f"last used at {place(idle.used)}" + (
        checked_out if idle.used != idle.site else ""
    )


def _is_of_an_earlier_use(idle: IdleConnection) -> bool:
    """Whether the lock was requested before the last user checked it out."""
    return idle.lock is not None and idle.lock.ago_s > idle.returned_s + idle.held_s
