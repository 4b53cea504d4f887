"""``poolwatch history``: the incidents that were kept, as a table or as JSON."""

from __future__ import annotations

import argparse
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args

from poolwatch.commands import arguments
from poolwatch.errors import UsageError

if TYPE_CHECKING:
    from poolwatch.model import Incident

_DESCRIPTION = """\
List the incidents that the sidecars have kept: since when, until when, which line. The
same fault in many processes is one line.
"""
_EXAMPLES = f"""\
examples:
  poolwatch history --since 24h            of the last day
  poolwatch history --since 03:00 --until 03:30 -v   ... with proofs and remedies
  poolwatch history --kind leaked --host web-3
  poolwatch ps --at 03:12                  what it looked like then

{arguments.TIMES}
UNTIL is "lasts" while an incident goes on; "?" marks one that nobody saw the end of,
because nobody was looking any more.

{arguments.environment(*arguments.HISTORY)}
exit codes: 0 done, also without any incident, 2 usage or no history,
4 permission denied
"""
_MAX_NAMED = 5
_NO_TERMINAL = 400
"""Columns if the output is not a terminal: nothing is cut in practice."""


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch history``."""
    history = parsers.add_parser(
        "history",
        help="the incidents that the sidecars have kept",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    history.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="also where it happened, the proof and the remedy",
    )
    history.add_argument(
        "--kind",
        action="append",
        default=[],
        metavar="KIND",
        help="only incidents of this kind, such as exhausted or leaked.orphaned; "
        "leaked stands for all leaks; may be given more than once",
    )
    for name, text in (
        ("since", "only incidents that lasted after TIME; 24h is the same as -24h"),
        ("until", "only incidents that began before TIME"),
    ):
        history.add_argument(
            f"--{name}", type=arguments.moment, metavar="TIME", help=text
        )
    history.add_argument("--host", metavar="NAME", help="only incidents of this host")
    arguments.add_json(history, "print every incident as JSON")
    arguments.add_history(history, live=False)
    return history


def run(options: argparse.Namespace) -> int:
    """Print the incidents."""
    from poolwatch.protocol import document

    since, until = options.since, options.until
    if since is not None and until is not None and since > until:
        raise UsageError("--since is later than --until")
    kinds = _kinds(options.kind)
    with closing(arguments.history(options)) as history:
        extent = history.extent()
        if until is not None and extent is not None and until < extent[0]:
            raise UsageError(
                f"--until lies before the history, which begins at {_when(extent[0])}"
            )
        found = history.incidents(since, until, kinds, options.host)
    if options.json:
        print(document.list_to_json(found, "incidents"))
        return 0
    if not found:
        begins = f"; the history begins at {_when(extent[0])}" if extent else ""
        print(f"no incident was found{begins}")
        return 0
    columns = shutil.get_terminal_size((_NO_TERMINAL, 24)).columns
    for line in _table(_merged(found), columns, verbose=options.verbose):
        print(line)
    return 0


def _kinds(given: Sequence[str]) -> list[str]:
    """The kinds of findings that are meant."""
    from poolwatch.model import FindingKind

    known: Sequence[str] = get_args(FindingKind)
    chosen: list[str] = []
    for name in given:
        meant = [kind for kind in known if name in {kind, kind.partition(".")[0]}]
        if not meant:
            raise UsageError(
                f"there is no kind {name!r:.40}; the kinds: {', '.join(known)}"
            )
        chosen += meant
    return chosen


# -- the same fault, merged ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fault:
    """Incidents of one kind at the same call sites."""

    incidents: Sequence[Incident]
    """The one that began first comes first."""

    @property
    def last(self) -> Incident:
        """The one that was seen last."""
        return max(self.incidents, key=lambda each: each.last_seen_at)

    @property
    def until(self) -> str:
        """When it ended; as a time of day if it began on the same day."""
        seen = _words(self.last.last_seen_at)
        day, _, clock = seen.partition(" ")
        text = clock if _words(self.incidents[0].started_at).startswith(day) else seen
        return text if self.last.ended_at is not None else f"{text}?"

    def lasts(self, now: float) -> bool:
        """Whether it goes on: it was seen a moment ago."""
        from poolwatch.sidecar.history.reading import ALIVE_S

        return any(
            each.ended_at is None
            and datetime.fromisoformat(each.last_seen_at).timestamp() >= now - ALIVE_S
            for each in self.incidents
        )

    @property
    def where(self) -> str:
        """The process, or how many they are."""
        from poolwatch.text.format import plural

        names = list(dict.fromkeys(map(_who, self.incidents)))
        if len(names) == 1:
            return names[0]
        hosts = {each.host for each in self.incidents}
        where = plural(len(hosts), "host") if len(hosts) > 1 else min(hosts)
        return f"{len(names)} processes on {where}"

    @property
    def call_sites(self) -> str:
        """The lines; else the pool."""
        from poolwatch.text.format import place

        last = self.last
        places = list(dict.fromkeys(map(place, last.sites)))
        if not places:
            return f"pool {last.pool}" if last.pool else "-"
        return places[0] + (f" +{len(places) - 1}" if len(places) > 1 else "")


def _merged(found: Sequence[Incident]) -> list[_Fault]:
    """Merge the incidents of one kind and the same call sites, the oldest first."""
    faults: dict[Any, list[Incident]] = defaultdict(list)
    for each in found:
        faults[each.kind, each.sites or each.pool].append(each)
    return [_Fault(incidents) for incidents in faults.values()]


def _who(incident: Incident) -> str:
    return f"{incident.process} (pid {incident.pid}) on {incident.host}"


def _words(at: str) -> str:
    from poolwatch.text.incident_snapshots import date_and_time

    return " ".join(date_and_time(at)).removesuffix(" UTC")


def _when(at: float) -> str:
    from poolwatch.text.format import utc_time

    return f"{_words(utc_time(at))} UTC"


# -- the table -------------------------------------------------------------------------

_TITLES = ("SINCE (UTC)", "UNTIL", "TIMES", "KIND", "CALL SITE", "WHERE", "WHAT")


def _table(faults: Sequence[_Fault], columns: int, *, verbose: bool) -> Iterator[str]:
    from poolwatch.text.format import fit, one_line, width

    now = time.time()
    rows = [_TITLES, *(_row(fault, now) for fault in faults)]
    rows = [tuple(one_line(cell) for cell in row) for row in rows]
    sizes = [max(map(width, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for row, fault in zip(rows, (None, *faults), strict=True):
        cells = [fit(cell, size) for cell, size in zip(row, sizes, strict=False)]
        yield fit("  ".join([*cells, row[-1]]), columns).rstrip()
        if fault is not None and verbose:
            yield from _details(fault, columns)


def _row(fault: _Fault, now: float) -> tuple[str, ...]:
    last = fault.last
    return (
        _words(fault.incidents[0].started_at),
        "lasts" if fault.lasts(now) else fault.until,
        str(len(fault.incidents)),
        last.kind,
        fault.call_sites,
        fault.where,
        last.text,
    )


def _details(fault: _Fault, columns: int) -> Iterator[str]:
    from poolwatch.commands.ps_table import Style, wrapped
    from poolwatch.text.format import one_line, place

    last = fault.last
    names = list(dict.fromkeys(map(_who, fault.incidents)))
    more = len(names) - _MAX_NAMED
    named = names[:_MAX_NAMED] + ([f"and {more} more"] if more > 0 else [])
    texts = [f"{last.severity}: {last.text}", f"in {', '.join(named)}"]
    if len(last.sites) > 1:
        texts.append(f"call sites: {', '.join(map(place, last.sites))}")
    texts += [f"proof: {last.proof}" if last.proof else "", last.remedy]
    for text in filter(None, texts):
        yield from wrapped(one_line(text, 4000), Style(min(columns, 100)), 4)
    yield ""
