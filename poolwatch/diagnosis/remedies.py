"""Remedies: from the circumstances of a hold to what would have helped.

One table for all findings. Without a circumstance that fits, the finding's own remedy
is right.
"""

from __future__ import annotations

from collections.abc import Iterable

from poolwatch.diagnosis.circumstances import Circumstance, CircumstanceKind
from poolwatch.model import FindingKind
from poolwatch.text.format import place

_LEAKED: frozenset[FindingKind] = frozenset(
    {"leaked.collected", "leaked.orphaned", "leaked.abandoned"}
)
_HELD: frozenset[FindingKind] = frozenset({"long_hold", "held_across_io"})

_WORDS: dict[CircumstanceKind, tuple[frozenset[FindingKind], str]] = {
    "used after close": (
        _LEAKED | _HELD,
        "The session was closed at {where} and was used again after that: it began "
        "again, with another connection. Use it only before it is closed, or close "
        "it once more.",
    ),
    "lazy load": (
        _LEAKED | _HELD,
        "The connection was checked out to load {name}. Load it with the query that "
        "loads the object, e.g. with selectinload(); if commit() has expired it, "
        "set expire_on_commit=False. Close the session after its last use.",
    ),
    "session on connection": (
        _LEAKED | _HELD,
        "Close the connection itself: the session is bound to a Connection, so "
        "commit() and close() of the session leave it checked out. Or bind the "
        "session to the engine.",
    ),
    "only commits": (
        _LEAKED | _HELD,
        "The with block at {where} ends the transaction, but does not return the "
        "connection: call {name} in a finally clause.",
    ),
    "scoped session": (
        _LEAKED,
        "A scoped session has it: call remove() at the end of each job, in the thread "
        "or task of the job. In any other, remove() finds another session.",
    ),
    "request": (
        _HELD,
        "A dependency of the request has it, and returns it only after the response. "
        "Close the session in the endpoint, before slow work and before the response "
        "is sent; a stream or background task opens its own.",
    ),
    "exit stack": (
        _LEAKED,
        "An exit stack has it and was not closed: use the stack in a with block, or "
        "close it in a finally clause.",
    ),
    "generator": (
        _LEAKED,
        "A suspended generator has it, at {where}: close the generator, e.g. with "
        "contextlib.closing(), or read it to its end.",
    ),
    "cleanup without effect": (
        _LEAKED,
        "The cleanup at {where} has not returned the connection: it was cancelled or "
        "failed on its way, or it closes something else. Close the connection "
        "first of all there; under asyncio, shield that, with asyncio.shield() or "
        "anyio.CancelScope(shield=True).",
    ),
    "task cancelled": (
        _LEAKED,
        "The task was cancelled before the connection was returned: close it in a "
        "finally clause, and shield the close, with asyncio.shield() or "
        "anyio.CancelScope(shield=True).",
    ),
    "thread-local": (
        _LEAKED,
        "A threading.local keeps it as long as its thread lives: close it at the end "
        "of each job.",
    ),
    "context variable": (
        _LEAKED,
        "A context variable keeps it: close it where the job ends that set the "
        "variable.",
    ),
    "garbage": (
        _LEAKED,
        "No variable has it: it is garbage that waits for the garbage collector. "
        "Close it in the function that checks it out, e.g. with a with block.",
    ),
    "with block": (
        _LEAKED,
        "The with block at {where} should have returned it: find out what keeps the "
        "block from its end, e.g. a generator that is suspended in it.",
    ),
}
"""In the order in which they are chosen: the findings they fit, and their words."""


def remedy_for(
    kind: FindingKind, circumstances: Iterable[Circumstance], otherwise: str
) -> str:
    """The remedy that fits the circumstances; ``otherwise`` if none is special."""
    seen = {each.kind: each for each in circumstances}
    for name, (kinds, words) in _WORDS.items():
        if name in seen and kind in kinds:
            found = seen[name]
            return words.format(where=place(found.where), name=found.name)
    return otherwise
