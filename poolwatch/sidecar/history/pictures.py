"""The snapshots that are written: the newest of each process, and those that stay."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from poolwatch.errors import UnreachableError
from poolwatch.model import Process, Snapshot
from poolwatch.protocol.document import from_json, to_json

STAYS_S = 600.0
"""How often the picture of a process stays, whatever happens."""
_REST = 200
"""Seconds of rest for each second that the pictures of all processes take: a two
hundredth of a core."""
_UNPACKED_BYTES = 50_000
UNKNOWN = -1.0
_MAX_BYTES = 200 << 20
"""Of a snapshot that is read: a few bytes can be unpacked to any length."""


@dataclass(slots=True)
class Picture:
    """One snapshot of one process, for one row."""

    process_id: int
    at: float
    process: Process | None
    """None once it is packed."""
    newest: bool
    """Whether the next one replaces it."""
    incident_id: str | None = None
    replaces: float | None = None
    """When the row was taken that it replaces; UNKNOWN: the store knows."""
    document: bytes = b""
    took_s: float = 0.0

    def pack(self) -> None:
        """Encode and compress it, unless that is done."""
        if self.process is not None:
            began = time.thread_time()
            text = to_json(Snapshot((self.process,)), viewers=True)
            self.document = zlib.compress(text.encode())
            self.took_s = time.thread_time() - began
            self.process = None


def unpack(document: bytes) -> Process:
    """Read a packed picture; raises UnreachableError if it is damaged."""
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(document, _MAX_BYTES)
    except (zlib.error, TypeError) as error:
        raise UnreachableError(f"its snapshot is damaged: {error}") from None
    if not unpacking.eof:
        raise UnreachableError("its snapshot is damaged: cut short, or too long")
    read = from_json(text).processes
    if len(read) != 1:
        raise UnreachableError("its snapshot is damaged: it is not of one process")
    return read[0]


@dataclass(slots=True)
class _Shown:
    """One process, as it was shown last and as it was written last."""

    process: Process
    at: float
    written: Process | None = None
    written_at: float = 0.0
    stays_at: float = 0.0
    """When the last picture that stays was taken."""
    row_at: float | None = UNKNOWN
    """The row that the next picture replaces."""
    took_s: float = 0.0

    def is_due(self, rest_s: float) -> bool:
        age_s = abs(self.at - self.written_at)  # clocks are set back
        if self.written is None or age_s >= STAYS_S:
            return True
        if _is_same(self.process, self.written):
            return False
        return age_s >= rest_s or _troubles(self.process) != _troubles(self.written)


class Pictures:
    """Decides which pictures are written. Not thread-safe, except Picture.pack()."""

    def __init__(self) -> None:
        self._shown: dict[int, _Shown] = {}
        self._kept: dict[tuple[int, float], Picture] = {}
        """Those that must be written, whatever comes after them."""

    def show(self, process_id: int, process: Process, at: float) -> None:
        """A look has shown a process."""
        shown = self._shown.get(process_id)
        if shown is None:
            self._shown[process_id] = _Shown(process, at)
        else:
            shown.process, shown.at = process, at

    def keep(
        self, process_id: int, process: Process, at: float, incident_id: str
    ) -> None:
        """Keep the picture of an incident; several that begin at once share it."""
        picture = Picture(process_id, at, process, False, incident_id, UNKNOWN)
        self._kept.setdefault((process_id, at), picture)

    def end(self, process_id: int) -> None:
        """A process has ended: its last picture is the newest one for ever."""
        shown = self._shown.pop(process_id, None)
        if shown is not None and shown.written is not shown.process:
            picture = self._picture(process_id, shown)
            self._kept.setdefault((process_id, shown.at), picture)

    def unpacked(self) -> list[Picture]:
        """Those that wait for the store and take more memory than they must."""
        return [each for each in self._kept.values() if each.process is not None]

    def take(self, *, last: bool) -> list[Picture]:
        """Give out what is due; ``last``: all that is not written."""
        kept, self._kept = self._kept, {}
        rest_s = _REST * sum(shown.took_s for shown in self._shown.values())
        taken = list(kept.values())
        for process_id, shown in self._shown.items():
            if (process_id, shown.at) not in kept:
                is_new = shown.written is not shown.process
                if not shown.is_due(rest_s) and not (last and is_new):
                    continue
                taken.append(self._picture(process_id, shown))
                if not taken[-1].newest:
                    shown.stays_at = shown.at
            shown.written, shown.written_at = shown.process, shown.at
        return taken

    def put_back(self, pictures: Iterable[Picture]) -> None:
        """They could not be written."""
        for picture in pictures:
            shown = self._shown.get(picture.process_id)
            if shown is not None:
                shown.row_at, shown.written = UNKNOWN, None
            if shown is None or not picture.newest:
                picture.replaces = UNKNOWN
                self._kept[picture.process_id, picture.at] = picture

    def write_again(self) -> None:
        """Nothing is known to be in the store."""
        for shown in self._shown.values():
            shown.row_at, shown.written = UNKNOWN, None

    def written(self, pictures: Iterable[Picture]) -> None:
        """They are in the store."""
        for picture in pictures:
            shown = self._shown.get(picture.process_id)
            if shown is not None:
                shown.took_s = picture.took_s or shown.took_s
                if picture.at >= shown.written_at:
                    shown.row_at = picture.at if picture.newest else None

    def drop_before(self, at: float) -> None:
        """Drop the older ones."""
        for key in [key for key in self._kept if key[1] < at]:
            del self._kept[key]

    def bytes(self) -> int:
        """About how much memory they take, without the newest ones."""
        return sum(
            len(each.document) or _UNPACKED_BYTES for each in self._kept.values()
        )

    @staticmethod
    def _picture(process_id: int, shown: _Shown) -> Picture:
        return Picture(
            process_id,
            shown.at,
            shown.process,
            newest=abs(shown.at - shown.stays_at) < STAYS_S,
            replaces=shown.row_at,
        )


def _is_same(now: Process, before: Process) -> bool:
    """Whether nothing has changed but averages and ages that nobody waits for."""
    if now.holds or now.waits or before.holds or before.waits:
        return False
    return now.findings == before.findings and _figures(now) == _figures(before)


def _figures(process: Process) -> list[tuple[object, ...]]:
    return [
        (pool.id, pool.counters, pool.checked_out, pool.idle, pool.size)
        for pool in process.pools
    ]


def _troubles(process: Process) -> set[tuple[object, ...]]:
    found: set[tuple[object, ...]] = {
        (each.kind, each.pool, each.sites) for each in process.findings
    }
    return found | {(hold.id,) for hold in process.holds if hold.verdict != "ok"}
