"""``lock_wait``: a statement waits for a lock, with the sessions that block it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from poolwatch.diagnosis.common import distinct_sites
from poolwatch.diagnosis.dirty_returns import (
    blamed_site,
    idle_in_words,
    last_use,
    release,
    remedy_for_idle,
    used_just_now,
)
from poolwatch.diagnosis.sessions import (
    PREPARED,
    Session,
    Sessions,
    holds_with_rows,
    server_of,
)
from poolwatch.model import Finding, Frame, Hold, Process, ServerRow
from poolwatch.text.format import call_site, duration, neutral, one_line, place

_MAX_NAMED = 4
"""Most blockers that are named; the others are counted."""
_MAX_STATEMENT = 80
"""Most characters of a blocker's statement."""


class LockChain(NamedTuple):
    """A hold that waits for a lock, and the sessions that it waits for."""

    process: Process
    hold: Hold
    row: ServerRow
    blockers: list[Session]
    """Those that block it, the ones that wait themselves last."""
    behind: list[Session]
    """Those at the end of the chain, unless they are among ``blockers``."""


def lock_waits(process: Process, sessions: Sessions) -> list[Finding]:
    """The ``lock_wait`` findings of one process."""
    return [lock_wait(chain) for chain in lock_chains(process, sessions)]


def lock_chains(process: Process, sessions: Sessions) -> list[LockChain]:
    """The holds of one process that wait for a lock."""
    chains = []
    for hold, row, status in holds_with_rows(process):
        if not row.blocked_by or hold.may_have_ended:
            continue
        server = server_of(process, status)
        waiting = Session(hold.backend_pid or 0, process, hold=hold)
        blockers = sessions.blockers(server, waiting)
        blockers.sort(key=lambda each: each.is_waiting)
        direct = {each.pid for each in blockers}
        roots = sessions.roots(server, waiting)
        behind = [root for root in roots if root.pid not in direct]
        chains.append(LockChain(process, hold, row, blockers, behind))
    return chains


def lock_wait(chain: LockChain) -> Finding:
    """The ``lock_wait`` finding about one hold."""
    process, hold, row, blockers, behind = chain
    text = f"{call_site(hold)} is blocked by {_all_in_words(blockers, process)}"
    if behind:
        text += f"; at the root of the chain is {_all_in_words(behind, process)}"
    pids = ", ".join(map(str, row.blocked_by))
    return Finding(
        kind="lock_wait",
        severity="critical",
        pool=hold.pool,
        text=text,
        proof=f"pg_blocking_pids({hold.backend_pid}) = {pids}; waiting for "
        f"{duration(row.state_age_s)}",
        remedy=remedies(causes(chain)),
        holds=(hold.id,),
        sites=distinct_sites(
            hold.site, *(site_of(each) for each in (*blockers, *behind))
        ),
    )


def causes(chain: LockChain) -> list[Session]:
    """The sessions that wait for no lock; all blockers if none is known."""
    chained = [*chain.blockers, *chain.behind]
    return [each for each in chained if each.row and not each.is_waiting] or chained


def site_of(session: Session) -> Frame | None:
    """The call site to blame for a session, if it is known."""
    if session.kept is not None:
        return session.kept.site
    if session.hold is not None:
        return None if session.hold.may_have_ended else session.hold.site
    return None if session.idle is None else blamed_site(session.idle)


def _all_in_words(sessions: Sequence[Session], process: Process) -> str:
    names = [in_words(each, process) for each in sessions[:_MAX_NAMED]]
    more = len(sessions) - _MAX_NAMED
    return " and ".join(names) + (f" and {more} more" if more > 0 else "")


def in_words(session: Session, process: Process | None = None) -> str:
    """Name a session; with its process, if that is not ``process``."""
    owner = session.process
    where = ""
    if owner is not None and process is not None and owner is not process:
        host = "" if owner.host == process.host else f" on {owner.host}"
        where = f"process {owner.pid}{host}, "
    if session.kept is not None and owner is not None:
        return f"{name_of_kept(session, where)}, {kept_since(session)}"
    if session.hold is not None and owner is not None:
        if session.hold.may_have_ended:
            return used_just_now(session.hold, owner, where)
        return (
            f"{call_site(session.hold)} ({where}{_state(session)}, pid {session.pid})"
        )
    if session.idle is not None and owner is not None:
        return idle_in_words(session.idle, owner, where)
    return _stranger_in_words(session)


def _state(session: Session) -> str:
    return (session.row and session.row.state) or "?"


def name_of_kept(session: Session, where: str = "") -> str:
    """Name a session lock that came back to its pool: the same whoever borrows it."""
    known, owner = session.hold or session.idle, session.process
    pools = owner.pools if owner and known else ()
    pool = next((pool.name for pool in pools if known and pool.id == known.pool), "?")
    return (
        f"a session lock kept by a pooled connection (pool {pool!r}, {where}pid "
        f"{session.pid})"
    )


def kept_since(session: Session) -> str:
    """Say who requested such a lock, and who has its connection now or had it last."""
    request, hold, idle = (
        session.kept and session.kept.request,
        session.hold,
        session.idle,
    )
    words = "the statement that requested it was not seen"
    if request is not None:
        words = (
            f"requested at {place(request.sent or request.site)} "
            f"{duration(request.ago_s)} ago, and no unlock was seen since"
        )
    if idle is not None:
        return f"{words}; {last_use(idle)}"
    if hold is None or hold.may_have_ended:
        return words
    return f"{words}; now borrowed by {call_site(hold)} ({_state(session)})"


def _stranger_in_words(session: Session) -> str:
    """Name a session of another program by what the server says about it."""
    backend = session.backend
    if session.pid == PREPARED:
        return "a prepared transaction"
    if backend is None:
        return f"the session with pid {session.pid}"
    row = backend.row
    details = [f"pid {session.pid}"]
    if backend.client is not None:
        details.append(f"client {backend.client}")
    elif backend.client_port == -1:
        details.append("over a Unix socket")
    if row.state is not None:
        details.append(f"{row.state} for {duration(row.state_age_s)}")
    words = (
        f"a session of {backend.application!r}"
        if backend.application
        else ("a session without application_name")
    )
    statement = f": {one_line(row.query, _MAX_STATEMENT)}" if row.query else ""
    return f"{neutral(words)} ({', '.join(details)}{statement})"


def remedies(causes: Iterable[Session]) -> str:
    """The remedies for the sessions that keep all others waiting, each once."""
    found = dict.fromkeys(_remedy(each) for each in causes)
    return " ".join(list(found)[:2])


def _remedy(session: Session) -> str:
    if session.kept is not None:
        return release(session.pid)
    if session.idle is not None and session.process is not None:
        return remedy_for_idle(session.idle, session.process)
    if session.pid == PREPARED:
        return "Look into pg_prepared_xacts; COMMIT PREPARED or ROLLBACK PREPARED it."
    if session.hold is None:
        return (
            "Find out who runs it; to end it: SELECT "
            f"pg_terminate_backend({session.pid}). A lock_timeout limits the wait in "
            "any case."
        )
    if session.advisory:
        return (
            "Release the advisory lock before other work: by pg_advisory_unlock, or "
            "by the end of the transaction after pg_advisory_xact_lock. A waiter "
            "need not wait with pg_try_advisory_lock."
        )
    return "Commit or roll back the blocking transaction; do slow work after it."
