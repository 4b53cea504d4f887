"""Cancels a statement or ends a session, over a connection of its own.

A pid may be reused, and a statement may end while the user reads the question. So the
pid is compared together with ``backend_start`` and with what the backend does, in the
very statement that sends the signal.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from poolwatch.errors import PoolwatchError, RefusedError, ServerViewError
from poolwatch.model import OWN_NAME
from poolwatch.model.actions import Action, Chosen, Outcome, Target, Waiter
from poolwatch.postgres.activity import values_of
from poolwatch.postgres.connection import (
    Facts,
    MonitoringConnection,
    open_connection,
)
from poolwatch.postgres.dsn_reader import connect
from poolwatch.postgres.errors import as_failure
from poolwatch.postgres.join import DRIFT, SLACK_S, Window, is_backend_of
from poolwatch.protocol.records import ServerReading
from poolwatch.runtime.guard import log
from poolwatch.text.format import duration, one_line

PATIENCE_S = 5.0
"""Seconds within which PostgreSQL must answer."""
OBSERVED_S = 3.0
"""Seconds for which a backend, and those behind it, are watched after an action."""
_EVERY_S = 0.1
_SHOWN_XACT_S = 1.0
"""A transaction that was older when it was shown must still be open."""
_MAX_NAMED = 4
_PERMISSION = "42501"

_SESSIONS = """
SELECT CAST(coalesce(json_agg(json_build_object(
    'pid', pid,
    'type', backend_type,
    'started', CAST(extract(epoch FROM backend_start) AS text),
    'xact_started', CAST(extract(epoch FROM xact_start) AS text),
    'query_started', CAST(extract(epoch FROM query_start) AS text),
    'hash', CAST(hashtextextended(query, 0) AS text),
    'state', state,
    'state_age_s', extract(epoch FROM clock_timestamp() - state_change),
    'wait', wait_event_type,
    'application', application_name,
    'user', usename,
    'database', datname,
    'blocked_by', CASE WHEN %(waiting)s AND wait_event_type = 'Lock'
                       THEN pg_blocking_pids(pid) END
)), '[]') AS text)
FROM pg_stat_activity
WHERE pid = ANY (%(pids)s) OR %(waiting)s AND wait_event_type = 'Lock'
"""
# a loop of short statements, each a transaction of its own, is one piece of work
_ACT = """
SELECT CASE WHEN %(cancel)s THEN pg_cancel_backend(pid)
            ELSE pg_terminate_backend(pid) END
FROM pg_stat_activity
WHERE pid = %(pid)s AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND extract(epoch FROM backend_start) = CAST(%(started)s AS numeric)
  AND CASE WHEN %(cancel)s
           THEN state IN ('active', 'fastpath function call')
                AND extract(epoch FROM query_start)
                    = CAST(%(query_started)s AS numeric)
           ELSE extract(epoch FROM xact_start) = CAST(%(xact_started)s AS numeric)
                OR hashtextextended(query, 0) = CAST(%(hash)s AS bigint) END
"""
_VERBS: dict[Action, str] = {"cancel": "cancel the statement of", "terminate": "end"}

T = TypeVar("T")
_Row = Mapping[str, Any]


class DsnActions:
    """Actions on the sessions of the server of one DSN, one at a time."""

    def __init__(self, dsn: str, facts: Facts) -> None:
        """``facts`` reads the backend pid and address of a driver's connection."""
        self._dsn = dsn
        self._facts = facts
        self._acting = threading.Lock()

    def look(self, chosen: Chosen) -> Target:
        """Read the backend of a session; raises PoolwatchError if it is not proven."""
        return _within(PATIENCE_S, partial(self._look, chosen))

    def act(self, action: Action, target: Target) -> Outcome:
        """Act if the target is still what was read, and watch what follows.

        Raises PoolwatchError if nothing was done, or if that is not known.
        """
        chosen = target.chosen
        whose = one_line(
            f"backend {chosen.pid} of {chosen.process or target.application or '?'}, "
            f"call site {chosen.site or 'unknown'}"
        )
        if not self._acting.acquire(blocking=False):
            raise RefusedError("another action is still under way: one at a time")
        log().info("asked to %s %s", _VERBS[action], whose)
        try:
            outcome = self._act(action, target)
        except PoolwatchError as error:
            log().warning("asked to %s %s: %s", _VERBS[action], whose, error)
            raise
        finally:
            self._acting.release()
        log().warning("asked to %s %s: %s", _VERBS[action], whose, outcome.text)
        return outcome

    # -- looking -------------------------------------------------------------------

    def _look(self, chosen: Chosen, given_up: threading.Event) -> Target:
        with self._opened(given_up) as connection:
            # first what is compared, then what is shown: if the backend goes on in
            # between, the action finds another statement and does nothing
            rows = _sessions(connection, [chosen.pid], waiting=True)
            (own_pid,) = _query(connection, "SELECT pg_backend_pid()")
            began = time.monotonic()
            reading = connection.read([chosen.pid])
            window = began - chosen.seen[1], time.monotonic() - chosen.seen[0]
        _check_server(chosen.server, reading.identity)
        row = rows.get(chosen.pid)
        if chosen.pid == own_pid or (row and row["application"] == OWN_NAME):
            raise RefusedError(f"backend {chosen.pid} is a session of poolwatch itself")
        return _proven(chosen, rows, reading, window)

    @contextmanager
    def _opened(self, given_up: threading.Event) -> Iterator[MonitoringConnection]:
        """A connection; errors of the driver become a sentence."""
        connection = None
        try:
            connection = open_connection(partial(connect, self._dsn), self._facts)
            _check_awaited(given_up)
            yield connection
        except PoolwatchError:
            raise
        except Exception as error:  # noqa: BLE001 - turned into one sentence
            raise as_failure(error) from None
        finally:
            if connection is not None:
                connection.close()

    # -- acting --------------------------------------------------------------------

    def _act(self, action: Action, target: Target) -> Outcome:
        pid = target.chosen.pid
        asked_at = time.monotonic()
        try:
            why_not = _within(PATIENCE_S, partial(self._signal, action, target))
        except _LateError:
            raise ServerViewError(
                f"PostgreSQL has not answered within {PATIENCE_S:g} s: whether it was "
                f"told to {_VERBS[action]} backend {pid} is not known"
            ) from None
        if why_not is not None:
            return Outcome(False, f"{why_not}; nothing was done")
        seen = _Seen(action, target, asked_at)
        try:
            _within(OBSERVED_S + PATIENCE_S, partial(self._watch, seen))
        except PoolwatchError as error:
            return Outcome(seen.reacted_s is not None, f"{seen.words()}. Then: {error}")
        return Outcome(seen.reacted_s is not None, seen.words())

    def _signal(
        self, action: Action, target: Target, given_up: threading.Event
    ) -> str | None:
        """Send the signal; return why it was not sent, or None if it was."""
        pid = target.chosen.pid
        guard = {
            "cancel": action == "cancel",
            "pid": pid,
            "started": target.started,
            "xact_started": target.xact_started,
            "query_started": target.query_started,
            "hash": target.statement_hash,
        }
        with self._opened(given_up) as connection:
            try:
                found = _query(connection, _ACT, **guard)
            except Exception as error:
                if getattr(error, "pgcode", None) != _PERMISSION:
                    raise
                raise _forbidden(action, target) from None
            if found == (True,):
                return None
            row = _sessions(connection, [pid]).get(pid)
        if row is None:
            return f"backend {pid} has ended meanwhile"
        if row["started"] != target.started:
            return f"backend {pid} has ended meanwhile, and another one has its pid"
        if action == "cancel":
            return f"the statement of backend {pid} has ended meanwhile"
        return f"backend {pid} has gone on meanwhile to another transaction"

    def _watch(self, seen: _Seen, given_up: threading.Event) -> None:
        """Watch until everything expected has happened, for OBSERVED_S at most."""
        with self._opened(given_up) as connection:
            while not given_up.is_set():
                seen.look(_sessions(connection, seen.pids))
                if seen.is_over or time.monotonic() - seen.asked_at > OBSERVED_S:
                    return
                time.sleep(_EVERY_S)


class _Seen:
    """What was seen of a backend, and of those behind it, since an action."""

    def __init__(self, action: Action, target: Target, asked_at: float) -> None:
        self.asked_at = asked_at
        self.reacted_s: float | None = None
        """Seconds until it was seen to be gone, or its statement to have ended."""
        self._action = action
        self._target = target
        self._waiting = {waiter.pid: waiter for waiter in target.frees}
        self._row: _Row | None = None

    @property
    def pids(self) -> list[int]:
        return [self._target.chosen.pid, *self._waiting]

    @property
    def is_over(self) -> bool:
        return self.reacted_s is not None and not self._waiting

    def look(self, rows: Mapping[int, _Row]) -> None:
        """Take note of the sessions as they are now."""
        target = self._target
        row = rows.get(target.chosen.pid)
        if row is not None and row["started"] != target.started:
            row = None
        self._row = row
        if self.reacted_s is None and self._has_reacted(row):
            self.reacted_s = time.monotonic() - self.asked_at
        for pid, waiter in list(self._waiting.items()):
            found = rows.get(pid)
            if (
                found is None
                or found["wait"] != "Lock"
                or found["query_started"] != waiter.query_started
            ):
                del self._waiting[pid]

    def _has_reacted(self, row: _Row | None) -> bool:
        if row is None or self._action == "terminate":
            return row is None
        same = row["query_started"] == self._target.query_started
        return not same or row["state"] != self._target.row.state

    def words(self) -> str:
        """What was seen, in one or two sentences."""
        pid, count = self._target.chosen.pid, len(self._target.frees)
        if self.reacted_s is not None:
            what = "is gone" if self._row is None else f"is now {self._row['state']}"
            first = (
                f"backend {pid} {what}, {duration(self.reacted_s)} after the request"
            )
            if self._action == "cancel" and self._row is not None:
                first = f"the statement has ended: {first}"
        else:
            state = (self._row or {}).get("state") or "there"
            first = f"backend {pid} has not reacted yet: it is still {state}"
        return f"{first}{self._words_of_waiters(count)}"

    def _words_of_waiters(self, count: int) -> str:
        rest = sorted(self._waiting)
        if count < 2:
            goes_on = "still waits" if rest else "goes on"
            return f"; the session behind it {goes_on}" if count else ""
        words = f"; {count - len(rest)} of {count} sessions behind it go on"
        if rest:
            named = ", ".join(map(str, rest[:_MAX_NAMED]))
            words += f", still waiting: pid {named}"
        return words + (" …" if len(rest) > _MAX_NAMED else "")


def _proven(
    chosen: Chosen, rows: Mapping[int, _Row], reading: ServerReading, window: Window
) -> Target:
    """Compare the fresh row with the session that was chosen."""
    pid = chosen.pid
    row = rows.get(pid)
    backend = next((each for each in reading.backends if each.pid == pid), None)
    if row is None or backend is None:
        raise RefusedError(f"backend {pid} has ended")
    if row["started"] is None:
        raise RefusedError(
            "the role of the DSN sees only the pid of this session, which does not "
            "prove which one it is: grant it pg_monitor to see, and pg_signal_backend "
            "to act"
        )
    if row["type"] != "client backend":
        raise RefusedError(f"backend {pid} serves no client: {one_line(row['type'])}")
    if not is_backend_of(chosen.connection, backend, window):
        raise RefusedError(
            f"backend {pid} is not proven to be the session that was shown: its age or "
            "client port differs"
        )
    shown_s, now_s = chosen.xact_age_s, backend.row.xact_age_s
    if shown_s is not None and shown_s > _SHOWN_XACT_S:
        tolerance = SLACK_S + DRIFT * shown_s
        if now_s is None or now_s < shown_s + window[0] - tolerance:
            raise RefusedError(f"the transaction of backend {pid} has ended meanwhile")
    frees, others = _behind(pid, rows)
    return Target(
        chosen=chosen,
        started=row["started"],
        xact_started=row["xact_started"],
        query_started=row["query_started"],
        statement_hash=row["hash"],
        row=backend.row,
        user=row["user"],
        database=row["database"],
        application=backend.application,
        client=backend.client,
        frees=frees,
        behind_others=others,
    )


def _behind(
    pid: int, rows: Mapping[int, _Row]
) -> tuple[tuple[Waiter, ...], tuple[Waiter, ...]]:
    """The sessions behind ``pid``, transitively: behind it alone, and the others."""
    blocked_by = {p: set(row["blocked_by"] or ()) for p, row in rows.items()}
    behind: set[int] = set()
    reached = {pid}
    while reached:
        reached = {p for p, by in blocked_by.items() if by & reached} - behind - {pid}
        behind |= reached
    frees = set(behind)
    while stuck := {p for p in frees if blocked_by[p] - frees - {pid}}:
        frees -= stuck

    def waiters(pids: Collection[int]) -> tuple[Waiter, ...]:
        return tuple(
            Waiter(p, rows[p]["application"] or None, rows[p]["query_started"])
            for p in sorted(pids)
        )

    return waiters(frees), waiters(behind - frees)


def _check_server(chosen: str, found: str) -> None:
    """Refuse another server. Not every role may read the system identifier."""
    (system, _, started), (other, _, since) = (
        chosen.partition("/"),
        found.partition("/"),
    )
    if started == since and (system == other or not system or not other):
        return
    same = system and system == other
    raise RefusedError(
        "the server has been restarted: the sessions from before have ended"
        if same
        else "the session is on a different server from that of the DSN"
    )


def _forbidden(action: Action, target: Target) -> RefusedError:
    return RefusedError(
        f"the role of the DSN may not {_VERBS[action]} a session of role "
        f"{one_line(target.user or '?', 63)}: it needs pg_signal_backend, or to be a "
        "superuser if that role is one; nothing was done"
    )


# -- statements ----------------------------------------------------------------------


def _query(connection: MonitoringConnection, sql: str, **values: Any) -> Any:
    """The first row of one statement as a tuple, or None."""
    cursor = connection.dbapi_connection.cursor()
    cursor.execute(sql, values or None)
    row = cursor.fetchone()
    return None if row is None else values_of(row)


def _sessions(
    connection: MonitoringConnection, pids: Collection[int], *, waiting: bool = False
) -> dict[int, _Row]:
    """The sessions ``pids``, and with ``waiting`` all that wait for a lock."""
    (text,) = _query(connection, _SESSIONS, pids=list(pids), waiting=waiting)
    return {row["pid"]: row for row in json.loads(text)}


class _LateError(ServerViewError):
    """PostgreSQL has not answered within the limit."""


def _check_awaited(given_up: threading.Event) -> None:
    if given_up.is_set():  # the user has been told that it is not known
        raise _LateError("PostgreSQL has answered too late")


def _within(seconds: float, job: Callable[[threading.Event], T]) -> T:
    """Run a job on a thread of its own: a server that hangs blocks a driver for ever.

    The job gets an event that is set when it is not waited for any more.
    """
    results: list[T] = []
    errors: list[Exception] = []
    given_up = threading.Event()

    def work() -> None:
        try:
            results.append(job(given_up))
        except Exception as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=work, name="poolwatch-action", daemon=True)
    thread.start()
    thread.join(seconds)
    given_up.set()
    if errors:
        raise errors[0]
    if not results:
        raise _LateError(f"PostgreSQL has not answered within {seconds:g} s")
    return results[0]
