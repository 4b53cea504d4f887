"""Numbers and records as text, the same in the log, the table and the dashboard."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from poolwatch.model import Frame

if TYPE_CHECKING:
    from poolwatch.model import Hold, SiteStats, Wait

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x1f\x7f-\x9f{_BIDI}\u2028\u2029\ufeff\ud800-\udfff]")

MAX_CALLERS = 3
"""Most callers of one call site that a sentence names."""


def neutral(text: str, *, lines: bool = False) -> str:
    """Make text from outside poolwatch harmless for a terminal.

    Control characters (C0, DEL, C1), bidirectional controls and lone surrogates become
    visible signs. With ``lines``, line ends are kept and tabs become four spaces.
    """
    if lines:
        text = text.replace("\r\n", "\n")
        return "\n".join(
            [neutral(line.replace("\t", "    ")) for line in text.split("\n")]
        )
    return _UNSAFE.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # the Unicode symbol of that control character
    return "\u2421" if code == 0x7F else "\ufffd"


def one_line(text: str, limit: int = 400) -> str:
    """Collapse white space and cut to ``limit`` characters, for a cell of a table."""
    folded = " ".join(text[: limit * 4].split())
    return neutral(folded if len(folded) <= limit else folded[: limit - 1] + "…")


def duration(seconds: float | None) -> str:
    """``0.3s``, ``38s``, ``1m12s``, ``4h03m``, ``2d05h``; "-" if unknown."""
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def lasts(request: Hold | Wait) -> str:
    """How long it has been held or waits; ``>38s`` if only the least is known."""
    least = "" if request.adopted_s is None else ">"
    return f"{least}{duration(request.known_s)}"


def clock(at: str) -> str:
    """``03:12:44``: an ISO 8601 time in the time zone of this machine."""
    try:
        return f"{datetime.fromisoformat(at).astimezone():%H:%M:%S}"
    except (ValueError, OverflowError):
        return one_line(at, 40)


def local_time(at: str) -> str:
    """``03:12:44``, in the time zone of this machine; of another day with its date."""
    try:
        moment = datetime.fromisoformat(at).astimezone()
    except (ValueError, OverflowError):
        return one_line(at, 40)
    is_today = moment.date() == datetime.now().astimezone().date()
    return f"{moment:%H:%M:%S}" if is_today else f"{moment:%Y-%m-%d %H:%M:%S}"


def since_epoch(at: str | None) -> float | None:
    """An ISO 8601 time in seconds since the epoch; None if it is none."""
    try:
        return datetime.fromisoformat(at or "").timestamp()
    except (ValueError, OverflowError):
        return None


def utc_time(at: float) -> str:
    """``2026-11-29T03:12:44.500+00:00``: a time since the epoch, in ISO 8601."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def short_time(seconds: float | None) -> str:
    """A latency: ``12 µs``, ``3.4 ms``, ``1.2 s``; "-" if unknown."""
    if seconds is None:
        return "-"
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s"


def about(seconds: float) -> str:
    """``~136 ms``: a percentile; it is the edge of a range, not a measured time."""
    if seconds >= 9.95:
        return f"~{duration(seconds)}"
    scale, unit = (1, "s") if seconds >= 0.9995 else (1e3, "ms")
    scale, unit = (scale, unit) if seconds >= 0.0009995 else (1e6, "µs")
    number = seconds * scale
    return f"~{number:.0f} {unit}" if number >= 9.95 else f"~{number:.2g} {unit}"


def place(frame: Frame | None, parts: int = 2) -> str:
    """``billing/export.py:88``: the last ``parts`` of the path, and the line number."""
    if frame is None:
        return "?"
    path = "/".join(PurePath(frame.file.replace("\\", "/")).parts[-parts:])
    return neutral(f"{path.replace('//', '/', 1)}:{frame.line}")


def site_and_callers(site: Frame | None, *callers: Frame | None) -> str:
    """``lib/db.py:8 from shop/cart.py:51``: a call site and its known callers."""
    places = list(dict.fromkeys(place(caller) for caller in callers if caller))
    if not places:
        return place(site)
    rest = len(places) - MAX_CALLERS
    more = f" and {rest} more" if rest > 0 else ""
    return f"{place(site)} from {', '.join(places[:MAX_CALLERS])}{more}"


def call_site(request: Hold | Wait | SiteStats) -> str:
    """The call site of a checkout or request, and its caller.

    If it is unknown, but not who has the connection: where that code is now.
    """
    now = getattr(request, "used_at", None)
    if request.site is None and now is not None:
        return f"? (now {place(now)})"
    return site_and_callers(request.site, request.caller)


def call_site_short(request: Hold | Wait | SiteStats, cells: int) -> str:
    """The call site and its caller for a cell of a table, shortened to fit."""
    site, caller = request.site, request.caller
    if site is None:
        return call_site(request)
    if caller is None:
        return place(site)
    modules = [f"{_module(each)}:{each.line}" for each in (site, caller)]
    texts = (
        site_and_callers(site, caller),
        f"{place(site, 1)} from {place(caller, 1)}",
        " from ".join(modules),
        " \N{LEFTWARDS ARROW} ".join(modules),
    )
    return next((text for text in texts if width(text) <= cells), texts[-1])


def _module(frame: Frame) -> str:
    return neutral(PurePath(frame.file).stem)


@lru_cache(maxsize=4096)
def width(text: str) -> int:
    """Number of terminal cells of a text."""
    if _ALL_NARROW.fullmatch(text):
        return len(text)
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    """Number of cells: none of marks, joiners, and the vowels of decomposed Hangul."""
    is_mark = unicodedata.category(character) in _NO_CELL
    if is_mark or "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if wide(character) else 1


# Latin, Cyrillic and the symbols of the dashboard: neither wide nor combining.
_ALL_NARROW = re.compile(
    "[\x20-\x7e\xa0-\u02ff\u0400-\u0482\u048a-\u052f"
    "\u2010-\u2027\u2190-\u22ff\u2400-\u2426\u2500-\u25fc]*"
)


_NO_CELL = ("Mn", "Mc", "Me", "Cf")
"""Categories of characters that are drawn with the one before them."""


def wide(character: str) -> bool:
    """Whether a character takes two cells."""
    return unicodedata.east_asian_width(character) in "WF"


def fit(text: str, cells: int) -> str:
    """Cut or pad a text to exactly ``cells``."""
    missing = cells - width(text)
    if missing >= 0:
        return text + " " * missing
    if _ALL_NARROW.fullmatch(text):
        return text[: cells - 1] + "…" if cells > 0 else ""
    characters, used = [], 0
    for character in text:
        size = width(character)
        if used + size > cells - 1:
            break
        characters.append(character)
        used += size
    return "".join(characters) + "…" + " " * (cells - 1 - used)


def fit_end(text: str, cells: int) -> str:
    """Like fit, but cut the beginning, so that a line number at the end stays."""
    if width(text) <= cells:
        return fit(text, cells)
    characters, used = [], 1
    for character in reversed(text):
        used += width(character)
        if used > cells:
            break
        characters.append(character)
    return fit("…" + "".join(reversed(characters)), cells)


def server_in(url: str | None) -> str | None:
    """Return ``host:port`` or ``directory:port`` of a URL; None without a host."""
    try:
        parts = urlsplit(url or "")
        parameters = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        host = parts.hostname or parameters.get("host")
        port = parts.port or parameters.get("port") or 5432
    except ValueError:
        return None
    return neutral(f"{unquote(host)}:{port}") if host else None


def plural(count: int, noun: str) -> str:
    """``1 hold``, ``2 holds``."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


_ACTIVITIES = {
    "database": "in the database",
    "http": "in an HTTP request",
    "network": "on the network",
    "sleep": "asleep",
    "lock": "waiting for a lock, queue or other thread",
    "file": "reading or writing a file",
    "process": "waiting for another process",
    "code": "in its own code",
}


def activity(frame: Frame, kind: str) -> str:
    """The position of a holder, and its kind of work: ``app.py:12: asleep``."""
    return f"{place(frame)}: {_ACTIVITIES[kind]}"


def activity_from(site: Frame | None, frame: Frame, kind: str | None) -> str:
    """The same where the call site is known: ``asleep at :14``, or in another file.

    ``kind``: None if it is not certain.
    """
    same_file = site is not None and site.file == frame.file
    where = f":{frame.line}" if same_file else place(frame)
    return f"{_ACTIVITIES[kind] if kind else 'now'} at {where}"
