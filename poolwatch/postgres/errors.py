"""Maps each driver error to one sentence of our own.

Drivers quote their input: a mistyped DSN puts parts of the password into the host name
or the option that "does not exist". So a driver's message is only matched against
patterns, and never shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from poolwatch.errors import ServerDownError, ServerViewError

_PASSWORD = "PostgreSQL refused the password"  # noqa: S105 - a sentence
_NO_PASSWORD = "PostgreSQL asks for a password and none was given"  # noqa: S105
_ROLE = "PostgreSQL refused this role or this address (see its pg_hba.conf)"
_NO_DATABASE = "PostgreSQL has no database of that name"
_NO_SLOT = "PostgreSQL has no connection slot left"
_NOT_UP = "PostgreSQL is starting up or shutting down"
_ENDED = "PostgreSQL closed the connection"
_SLOW = "PostgreSQL took too long to read pg_stat_activity; the query was cancelled"
_TOO_OLD = "this server is not PostgreSQL 14 or later"
_PERMISSION = "the role may not read pg_stat_activity"
_ABSENT = "no PostgreSQL answers at this address"
_NO_NAME = "the host name of the database cannot be resolved"
SILENT = "PostgreSQL has not answered in time"
_TLS = "the TLS connection to PostgreSQL failed (its certificate, or the SSL mode)"
_DSN = "the DSN cannot be read: give a libpq string or a PostgreSQL URL"
_SERVICE = "the libpq service that the DSN names is not defined"

_DOWN = frozenset({_ABSENT, _NOT_UP, _ENDED, SILENT})
_DOWN_MESSAGES = re.compile(
    "the database system is (starting up|shutting down|in recovery mode)"
    "|the database system is not( yet)? accepting connections"
    "|connection refused|connect call failed|no such file or directory"
    "|no route to host|network is unreachable|host is down"
    "|terminating connection due to administrator command"
    "|server closed the connection unexpectedly|connection reset by peer|broken pipe"
    "|(connection )?time(out expired|d out)",
    re.IGNORECASE,
)
"""Messages about a server that is down; none can contain parts of a DSN."""

_SENTENCES_BY_SQLSTATE = {
    "28P01": _PASSWORD,
    "28000": _ROLE,
    "3D000": _NO_DATABASE,
    "53300": _NO_SLOT,
    "57P03": _NOT_UP,
    "57P01": _ENDED,
    "57P02": _ENDED,
    "57P05": _ENDED,
    "57014": _SLOW,
    "55P03": _SLOW,
    "42501": _PERMISSION,
    "42704": _TOO_OLD,
    "42883": _TOO_OLD,
    "42P01": _TOO_OLD,
}
_SENTENCES = tuple(
    (re.compile(pattern, re.IGNORECASE), sentence)
    for pattern, sentence in (
        (r"password authentication failed", _PASSWORD),
        (r"no password supplied|password was not|requires a password", _NO_PASSWORD),
        (r"too many clients|connection slots are|too many connections", _NO_SLOT),
        (r"starting up|shutting down|in recovery mode", _NOT_UP),
        (r"system is not( yet)? accepting connections", _NOT_UP),
        (r"FATAL: .*database .* does not exist", _NO_DATABASE),
        (r"pg_hba\.conf|authentication failed|FATAL: .*role .*", _ROLE),
        (r"statement timeout|lock timeout", _SLOW),
        (r"definition of service|service file", _SERVICE),
        (r"invalid dsn|invalid (connection option|integer value|port)", _DSN),
        (r"missing \"=\"|invalid URI|could not parse|invalid literal for int", _DSN),
        (r"could not translate|name or service|getaddrinfo|gaierror", _NO_NAME),
        (r"timeout expired|timed out|TimeoutError", SILENT),
        (r"certificate|private key|SSLError", _TLS),
        (r"\bssl\b.*(error|support|required|refuses)", _TLS),
        (r"connection refused|no such file|can't create a conn|no route", _ABSENT),
        (r"connect call failed|network is unreachable|host is down", _ABSENT),
        (r"closed|terminat|reset by peer|broken pipe|network error|EOF", _ENDED),
    )
)


def as_failure(error: BaseException, *, alone: bool = False) -> ServerViewError:
    """Return the error to raise instead of ``error``; it quotes nothing of a DSN.

    ``alone``: ignore the causes of the error, which may be the application's.
    """
    if isinstance(error, ServerViewError):
        return error
    chain = [error] if alone else list(_with_causes(error))
    state = next((found for e in chain if (found := _sqlstate(e))), None)
    text = "\n".join(f"{type(each).__name__}: {each}" for each in chain)
    sentence = _SENTENCES_BY_SQLSTATE.get(state or "") or _sentence_for(text)
    if sentence is None:
        kind = type(error).__name__ + (f", SQLSTATE {state}" if state else "")
        sentence = f"PostgreSQL could not be read ({kind})"
    if sentence in _DOWN:
        message = _DOWN_MESSAGES.search(text)
        return ServerDownError(sentence, message[0].lower() if message else sentence)
    return ServerViewError(sentence)


def was_cancelled(error: BaseException) -> bool:
    """Whether the server cancelled the query: a retry would take as long."""
    return str(as_failure(error)) == _SLOW


def _sentence_for(text: str) -> str | None:
    return next(
        (sentence for pattern, sentence in _SENTENCES if pattern.search(text)), None
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    seen = 0
    while error is not None and seen < 10:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1


def _sqlstate(error: Any) -> str | None:
    """Return the SQLSTATE: psycopg's sqlstate, psycopg2's pgcode, pg8000's "C"."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is None and error.args and isinstance(error.args[0], dict):
        state = error.args[0].get("C")
    return state if isinstance(state, str) and re.fullmatch(r"\w{5}", state) else None
