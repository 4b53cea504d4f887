"""Remedies: from the circumstances of a hold to what would have helped.

One table for all findings about holds. The remedy for the framework that has the hold
comes first, the finding's own where no circumstance is special.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from poolwatch.diagnosis.circumstances import Circumstance, CircumstanceKind
from poolwatch.model import FindingKind
from poolwatch.text.format import place

_LEFT: frozenset[FindingKind] = frozenset({"leaked.orphaned", "leaked.abandoned"})
_LEAKED: frozenset[FindingKind] = _LEFT | {"leaked.collected"}
_HELD: frozenset[FindingKind] = frozenset({"long_hold", "held_across_io"})


class _Remedy(NamedTuple):
    findings: frozenset[FindingKind]
    """The findings that it fits."""
    words: str


_REMEDIES: dict[CircumstanceKind, _Remedy] = {
    "used after close": _Remedy(
        _LEAKED | _HELD,
        "The session was used again after it had been closed, by {name} at {where}: it "
        "began again and checked out another connection. Use it only before it is "
        "closed, or close it once more.",
    ),
    "lazy load": _Remedy(
        _LEAKED | _HELD,
        "The connection was checked out for a lazy load of {name}: load it together "
        "with its object, with selectinload() or joinedload(), before the session's "
        "commit(), and close the session after its last use.",
    ),
    "refresh": _Remedy(
        _LEAKED | _HELD,
        "The connection was checked out to load {name}, which had expired or was "
        "deferred: read it before the session's commit(), or set "
        "expire_on_commit=False, and close the session after its last use.",
    ),
    "session on connection": _Remedy(
        _LEAKED | _HELD,
        "Close the connection itself: the session is bound to a Connection, so "
        "commit() and close() of the session leave it checked out. Or bind the "
        "session to the engine.",
    ),
    "only commits": _Remedy(
        _LEAKED,
        "The with block at {where} ends the transaction, but does not return the "
        "connection: call {name} in a finally clause.",
    ),
    "scoped session": _Remedy(
        _LEAKED,
        "A scoped session has it: call remove() at the end of each job, in the job's "
        "own thread or task. In another one, remove() finds another session.",
    ),
    "request": _Remedy(
        _HELD,
        "A dependency of the request has it, and returns it only after the response. "
        "Close the session in the endpoint, before slow work and before the response "
        "is sent; let a stream or a background task open a session of its own.",
    ),
    "exit stack": _Remedy(
        _LEAKED,
        "An exit stack has it and was not closed: use the stack in a with block, or "
        "close it in a finally clause.",
    ),
    "generator": _Remedy(
        _LEAKED,
        "A suspended generator has it, at {where}: close the generator, e.g. with "
        "{name}, or read it to its end.",
    ),
    "coroutine": _Remedy(
        _LEAKED,
        "A suspended coroutine has it, at {where}: await it to its end, or close() it.",
    ),
    "thread-local": _Remedy(
        _LEAKED,
        "A threading.local keeps it as long as its thread lives: close it at the end "
        "of each job.",
    ),
    "context variable": _Remedy(
        _LEAKED,
        "A context variable keeps it: close it at the end of the job that set the "
        "variable.",
    ),
    "cleanup without effect": _Remedy(
        _LEAKED,
        "The cleanup at {where} has not returned the connection: it was cancelled, "
        "it failed on its way, or it closes something else. Close the connection "
        "first there; under asyncio, shield that from cancellation, with "
        "asyncio.shield() or anyio.CancelScope(shield=True).",
    ),
    "task cancelled": _Remedy(
        _LEAKED,
        "The task was cancelled before it had returned the connection: close it in a "
        "finally clause, and shield that from cancellation, with asyncio.shield() or "
        "anyio.CancelScope(shield=True).",
    ),
    "with block": _Remedy(
        _LEAKED,
        "The with block at {where} should have returned it: find out what keeps the "
        "block from its end, e.g. a generator that is suspended in it.",
    ),
    "no reference": _Remedy(
        _LEFT,
        "No variable was found that has it: most likely it is in a reference cycle and "
        "waits for the garbage collector{name}. Close it where it is checked out, with "
        "a with block or in a finally clause.",
    ),
    "own return": _Remedy(
        _LEFT,
        "Return the connection with {name}, in a finally clause where it is checked "
        "out.",
    ),
}
"""In the order in which they are chosen."""


_CLOSE_OUTSIDE_REQUESTS = (
    "Django closes connections at the end of a request, and at no other time: call "
    "connections.close_all() in a finally clause where the work of the thread ends."
)
_CLOSE_EARLY = (
    "Leave the atomic block and call connection.close() before slow work: Django opens "
    "a connection again with the next statement."
)
_OF_FRAMEWORK: dict[tuple[FindingKind, str], str] = {
    ("leaked.orphaned", "thread"): _CLOSE_OUTSIDE_REQUESTS,
    ("leaked.orphaned", "persistent"): "Set CONN_MAX_AGE to 0: the threads of these "
    "requests end with them (ASGI, gevent, a thread per request), so that no later "
    'request uses a persistent connection. OPTIONS["pool"] saves the connects.',
    ("leaked.abandoned", "thread"): "Outside of requests nothing closes the connection "
    "of a thread: call connections.close_all() when a job of the thread is done.",
    ("held_across_io", "thread"): _CLOSE_EARLY,
    ("long_hold", "thread"): _CLOSE_EARLY,
}
"""Remedies for holds of a framework, by kind and ``HoldEvidence.framework``."""


def remedy_for(
    kind: FindingKind,
    circumstances: Iterable[Circumstance],
    otherwise: str,
    *,
    framework: str | None = None,
) -> str:
    """The remedy of the framework, else for the circumstances, else ``otherwise``.

    ``framework`` is that of the hold: see ``HoldEvidence.framework``. It has checked
    the connection out, so how the application's code is written says nothing.
    """
    if framework is not None and (kind, framework) in _OF_FRAMEWORK:
        return _OF_FRAMEWORK[kind, framework]
    seen = {each.kind: each for each in circumstances}
    for name, remedy in _REMEDIES.items():
        if name in seen and kind in remedy.findings:
            found = seen[name]
            return remedy.words.format(where=place(found.where), name=found.name)
    return otherwise
