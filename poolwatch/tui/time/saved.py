"""A moment in a file: the dashboard writes it, ``poolwatch tui FILE`` opens it.

``{"schema": 1, "incidents": what is known of its findings over time, "saved_at":
ISO 8601, "snapshot": the document with viewers' fields}``.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from poolwatch.errors import (
    ForbiddenError,
    PoolwatchError,
    UnreachableError,
    UsageError,
)
from poolwatch.model import SCHEMA, Incident, Snapshot
from poolwatch.protocol.document import (
    from_document,
    list_from_document,
    list_to_json,
    parse,
    to_json,
)
from poolwatch.text.format import one_line, utc_time

MAX_BYTES = 200 << 20
_MOST_NAMES = 1000


class Saved:
    """A Source of one moment."""

    def __init__(
        self, snapshot: Snapshot, saved_at: str, incidents: Sequence[Incident] = ()
    ) -> None:
        self._snapshot = snapshot
        self.incidents = incidents
        """What is known of its findings over time."""
        self.at = snapshot.at
        """ISO 8601: the moment itself."""
        self.saved_at = saved_at
        """ISO 8601: when it was saved."""

    def snapshot(self) -> Snapshot:
        """Return the snapshot of the file, always the same."""
        return self._snapshot


# -- writing -----------------------------------------------------------------------


def save(
    snapshot: Snapshot, path: Path | None = None, incidents: Sequence[Incident] = ()
) -> Path:
    """Write a moment into a new file; return its whole path.

    Without ``path``: into the current folder, by default_name(). Raises PoolwatchError.
    """
    now = utc_time(time.time())
    document = to_json(replace(snapshot, at=snapshot.at or now), viewers=True)
    known = list_to_json(incidents, "incidents").removesuffix("}")
    text = f'{known}, "saved_at": "{now}", "snapshot": {document}}}\n'
    return write_new(path or Path(default_name(snapshot.at)), text)


def default_name(at: str | None, suffix: str = ".json") -> str:
    """``poolwatch-2026-11-29T03-12-44.json``: in local time; None is now."""
    moment = datetime.now().astimezone()
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(at or "").astimezone()
    return f"poolwatch-{moment:%Y-%m-%dT%H-%M-%S}{suffix}"


def write_new(path: Path, text: str) -> Path:
    """Write a file that only its owner may read; return its whole path.

    Nothing is overwritten: if the name is taken, ``-2`` is added to it, or ``-3``.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    candidate = path
    for number in range(2, _MOST_NAMES):
        try:
            file = os.open(candidate, flags, 0o600)
        except FileExistsError:
            candidate = path.with_stem(f"{path.stem}-{number}")
            continue
        except (OSError, ValueError) as error:
            raise _failure(candidate, "written", error) from None
        try:
            with os.fdopen(file, "w", encoding="utf-8") as stream:
                stream.write(text)
        except OSError as error:
            candidate.unlink(missing_ok=True)
            raise _failure(candidate, "written", error) from None
        return candidate.absolute()
    raise UsageError(f"{_name(path)} and {_MOST_NAMES - 2} names like it are taken")


# -- reading -----------------------------------------------------------------------


def open_saved(path: Path) -> Saved:
    """Read a saved moment; raises PoolwatchError with one sentence."""
    document = _parsed(path)
    foreign = f"{_name(path)} is not a moment saved by poolwatch"
    if not isinstance(document, dict) or "schema" not in document:
        raise UsageError(foreign)
    if document["schema"] != SCHEMA:
        raise UsageError(
            f"{_name(path)} has schema {document['schema']!r:.20}, this poolwatch "
            f"reads schema {SCHEMA}: open it with the version that saved it"
        )
    if not isinstance(document.get("snapshot"), dict):
        raise UsageError(foreign)
    try:
        snapshot = from_document(document["snapshot"])
        document.setdefault("incidents", [])  # of an earlier version
        incidents = list_from_document(Incident, document, "incidents")
        for at in (document["saved_at"], snapshot.at):
            datetime.fromisoformat(at or "").astimezone()
    except UnreachableError as error:
        raise UsageError(f"{_name(path)}: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UsageError(f"{_name(path)} does not say which moment it is of") from None
    return Saved(snapshot, document["saved_at"], incidents)


def _parsed(path: Path) -> Any:
    try:
        text = _content(path)
    except (OSError, ValueError) as error:
        raise _failure(path, "read", error) from None
    try:
        return parse(text)
    except ValueError:
        raise UsageError(
            f"{_name(path)} is not a complete JSON document: it is cut short, or not a "
            "saved moment"
        ) from None


def _content(path: Path) -> bytes:
    with open(path, "rb", opener=_at_once) as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{_name(path)} is not a file")
        text = stream.read(MAX_BYTES + 1) if found.st_size <= MAX_BYTES else b""
    if found.st_size > MAX_BYTES or len(text) > MAX_BYTES:
        limit = f"{MAX_BYTES >> 20} MiB"
        raise UsageError(f"{_name(path)} is larger than {limit}, the limit")
    return text


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _failure(path: Path, done: str, error: Exception) -> PoolwatchError:
    """Return the error to raise for an error of the file system."""
    why = getattr(error, "strerror", None) or "its name is not valid"
    kind = ForbiddenError if isinstance(error, PermissionError) else UsageError
    return kind(f"{_name(path)} cannot be {done}: {why}")


def _name(path: Path) -> str:
    return one_line(str(path), 200)
