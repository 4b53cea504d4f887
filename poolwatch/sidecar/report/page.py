"""The page: HTML from a template that escapes whatever comes from the history."""

from __future__ import annotations

import base64
import gzip
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

from poolwatch.errors import MissingExtraError
from poolwatch.model import Frame, Hold, Process, Wait
from poolwatch.sidecar.report import faults, plots, words
from poolwatch.sidecar.report.faults import Fault
from poolwatch.sidecar.report.stretch import Kept, Stretch
from poolwatch.sidecar.report.totals import Durations, Usage
from poolwatch.stacks.compare import user_frames
from poolwatch.text.format import duration, lasts, neutral, one_line, place, plural
from poolwatch.text.naming import holder_name, process_name
from poolwatch.version import VERSION

_HERO = 3
"""Faults that the page begins with."""
_ROWS, _VALUES, _LABELS = 15, 8, 6
_OCCURRENCES, _STACKS, _FRAMES = 8, 4, 24
_PARTS = files(__package__).joinpath("page")


class Bar(NamedTuple):
    """A call site, or a value of a label, and its part of the connection-seconds."""

    name: str
    held: str
    share: float
    average: str
    checkouts: str
    caused: str
    leaked: int


class Line(NamedTuple):
    """A line of a stack."""

    place: str
    function: str
    own: bool
    """Whether it is the application's own code."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Holds or waits with the same stacks."""

    title: str
    facts: tuple[tuple[str, str], ...]
    asked: tuple[Line, ...]
    now: tuple[Line, ...]


def renderer() -> Callable[[Stretch], str]:
    """Return the function that makes the page; raises MissingExtraError."""
    template = _environment().from_string(_part("page.html"))
    return partial(_render, template, plots.plotly_js())


def _render(template: Any, library: str, stretch: Stretch) -> str:
    script = _part("page.js")
    packed = gzip.compress(library.encode(), mtime=0)
    totals, since, until = stretch.totals, stretch.since, stretch.until
    figures = {
        "over-time": plots.over_time(totals, stretch.faults, since, until),
        "held-over-time": plots.held_over_time(totals, since, until),
        "waits": plots.distribution(totals, "waits"),
        "holds": plots.distribution(totals, "holds"),
    }
    return str(
        template.render(
            policy=_policy(library, script),
            style=_part("page.css"),
            script=script,
            library=base64.b64encode(packed).decode(),
            figures={name: each for name, each in figures.items() if each["data"]},
            stretch=stretch,
            title=_title(stretch),
            when=words.stretch_words(since, until),
            scope=_scope(stretch),
            unseen=_unseen(stretch),
            made=words.minute(time.time()),
            version=VERSION,
            hero=stretch.faults[:_HERO],
            fleet=[(each, _lines(each.sites)) for each in stretch.fleet[:_HERO]],
            worst=next(iter((*stretch.faults, *stretch.fleet)), None),
            extent=lambda fault: words.extent_words(fault, since, until),
            tiles=list(_tiles(stretch)),
            sites=_bars(stretch, _site_usages(stretch), _ROWS),
            labels=_labels(stretch),
            cards=list(_cards(stretch)),
            hidden=len(stretch.faults) - len(stretch.kept),
        )
    )


def _environment() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup, escape
    except ImportError as error:
        raise MissingExtraError("the report needs Jinja2", "report") from error
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.filters["cut"] = lambda text: one_line(text, 1200)
    # a path is broken at a slash
    environment.filters["breakable"] = lambda text: escape(text).replace(
        "/", Markup("/<wbr>")
    )
    return environment


def _harmless(value: object) -> object:
    return neutral(value, lines=True) if type(value) is str else value


def _part(name: str) -> str:
    return _PARTS.joinpath(name).read_text("utf-8")


def _policy(*scripts: str) -> str:
    """A policy that lets nothing be loaded, and no other script run."""
    digests = [hashlib.sha256(each.encode()).digest() for each in scripts]
    hashes = [f"'sha256-{base64.b64encode(each).decode()}'" for each in digests]
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )


# -- the beginning -------------------------------------------------------------------


def _title(stretch: Stretch) -> str:
    texts = [*(each.worst.text for each in stretch.faults[:1])]
    texts += [each.text for each in stretch.fleet]
    return one_line(texts[0], 120) if texts else "Nothing went wrong"


def _scope(stretch: Stretch) -> str:
    processes = stretch.totals.processes
    hosts = {host for host, _, _ in processes}
    many = len(processes)
    found = "1 process" if many == 1 else f"{many:,} processes"
    where = next(iter(hosts)) if len(hosts) == 1 else plural(len(hosts), "host")
    return one_line(f"{found} on {where}", 100)


def _unseen(stretch: Stretch) -> str:
    """How long no process was seen; empty if no more than a minute or two."""
    seen = sum(stretch.totals.covered) * 60
    missing = stretch.until - stretch.since - seen
    return duration(missing) if missing > 120 else ""


def _tiles(stretch: Stretch) -> Iterator[tuple[str, str, str]]:
    """Figures: name, value, note."""
    pools = stretch.totals.pools
    seconds = max(stretch.until - stretch.since, 1.0)
    checkouts = sum(pool.checkouts for pool in pools.values())
    yield "checkouts", words.number(checkouts), f"{checkouts / seconds:,.1f} a second"
    peaks = {key: max(pool.out_peak) for key, pool in pools.items()}
    fullest = max(peaks, key=lambda key: peaks[key], default=None)
    if fullest is not None:
        limit = pools[fullest].limit
        of = f"of {limit:,} of" if limit else "in"
        note = f"{of} {one_line(fullest.pool, 24)}"
        yield "most out", f"{peaks[fullest]:,}", note
    waiting = max((max(pool.waiting_peak) for pool in pools.values()), default=0)
    yield "longest queue", f"{waiting:,}", "waiting at once"
    waits = Durations()
    for pool in pools.values():
        waits.add(pool.waits.count, pool.waits.up_to)
    yield "99 % waited", words.within_words(waits, 0.99), "for a connection"
    timeouts = sum(pool.timeouts for pool in pools.values())
    yield "timeouts", f"{timeouts:,}", "requests in vain"
    leaked = sum(pool.leaked for pool in pools.values())
    yield "leaked", f"{leaked:,}", "connections"


# -- who held ------------------------------------------------------------------------


def _site_usages(stretch: Stretch) -> list[tuple[str, Usage]]:
    sites = stretch.totals.sites.items()
    return [(words.site_name(site), usage) for site, usage in sites]


def _labels(stretch: Stretch) -> list[tuple[str, list[Bar]]]:
    """Return the labels with the most connection-seconds, and their values."""
    labels = stretch.totals.labels
    heaviest = sorted(labels, key=lambda name: -_held(list(labels[name].items())))
    return [
        (name, _bars(stretch, list(labels[name].items()), _VALUES))
        for name in heaviest[:_LABELS]
    ]


def _bars(
    stretch: Stretch, usages: Sequence[tuple[str, Usage]], most: int
) -> list[Bar]:
    ranked = sorted(usages, key=lambda each: -each[1].held_s)
    whole = _held(ranked) or 1.0
    covered = sum(stretch.totals.covered) * 60 or 1
    shown = list(ranked[:most])
    rest = ranked[most:]
    found = [_bar(name, [usage], whole, covered) for name, usage in shown]
    if rest:
        usages_left = [usage for _, usage in rest]
        found.append(_bar(f"{len(rest):,} others", usages_left, whole, covered))
    return found


def _bar(name: str, usages: Sequence[Usage], whole: float, covered: float) -> Bar:
    held = sum(usage.held_s for usage in usages)
    caused = sum(usage.wait_caused_s for usage in usages)
    return Bar(
        name=one_line(name, 100),
        held=f"{held:,.0f}" if held >= 10 else f"{held:.1f}",
        share=held / whole,
        average=f"{held / covered:.2f}",
        checkouts=words.number(sum(usage.count for usage in usages)),
        caused=duration(caused) if caused >= 0.05 else "-",
        leaked=sum(usage.leaked for usage in usages),
    )


def _held(usages: Sequence[tuple[str, Usage]]) -> float:
    return sum(usage.held_s for _, usage in usages)


# -- incidents -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Card:
    """A fault in full."""

    fault: Fault
    occurrences: tuple[tuple[str, str, str], ...]
    """When it began, how long it lasted, in which process."""
    sites: tuple[Line, ...]
    stacks: tuple[Stack, ...]
    more: int
    """Stacks that are left out."""
    kept: str
    """Of which process and when the stacks are."""


def _cards(stretch: Stretch) -> Iterator[Card]:
    since, until = stretch.since, stretch.until
    for fault, kept in zip(stretch.faults, stretch.kept, strict=False):
        in_order = sorted(fault.incidents, key=lambda each: each.started_at)
        stacks = _stacks(kept) if kept else []
        yield Card(
            fault=fault,
            occurrences=tuple(
                (
                    *words.incident_words(
                        each.started_at, each.last_seen_at, since, until
                    ),
                    one_line(f"{each.process}, pid {each.pid} on {each.host}", 100),
                )
                for each in in_order[:_OCCURRENCES]
            ),
            sites=_lines(fault.worst.sites),
            stacks=tuple(stacks[:_STACKS]),
            more=max(0, len(stacks) - _STACKS),
            kept=_whose(kept.process) if kept else "",
        )


def _whose(process: Process) -> str:
    when = words.minute(faults.when(process.at)) if process.at else ""
    return f"{process_name(process)}, pid {process.pid} on {process.host}, {when}"


def _stacks(kept: Kept) -> list[Stack]:
    """Return the stacks of a finding's holds and waits, equal ones once."""
    holds = [each for each in kept.process.holds if each.id in kept.finding.holds]
    waits = [each for each in kept.process.waits if each.id in kept.finding.waits]
    groups: dict[object, list[Hold]] = {}
    for hold in sorted(holds, key=lambda each: -(each.held_s or 0.0)):
        groups.setdefault((hold.stack, hold.now), []).append(hold)
    queues: dict[object, list[Wait]] = {}
    for wait in sorted(waits, key=lambda each: -each.known_s):
        queues.setdefault(wait.stack, []).append(wait)
    return [
        *map(_held_stack, groups.values()),
        *map(_waiting_stack, queues.values()),
    ]


def _held_stack(holds: Sequence[Hold]) -> Stack:
    hold = holds[0]
    server = hold.server
    facts = [
        ("holder", holder_name(hold)),
        ("labels", "  ".join(f"{key}={each}" for key, each in hold.labels.items())),
        ("evidence", "; ".join(hold.evidence)),
        ("statement", hold.statement or ""),
    ]
    if server is not None:
        state = f"{server.state or '?'} for {duration(server.state_age_s)}"
        backend = f"backend {hold.backend_pid}, " if hold.backend_pid else ""
        facts.append(("server", f"{backend}{state}"))
    return Stack(
        title=f"{plural(len(holds), 'connection')} held"
        f" {'for' if len(holds) == 1 else 'up to'} {lasts(hold)}",
        facts=_shown(facts),
        asked=_lines(hold.stack, hold.site),
        now=() if hold.now == hold.stack else _lines(hold.now, hold.site),
    )


def _waiting_stack(waits: Sequence[Wait]) -> Stack:
    wait = waits[0]
    labels = "  ".join(f"{key}={each}" for key, each in wait.labels.items())
    return Stack(
        title=f"{plural(len(waits), 'request')} waiting"
        f" {'for' if len(waits) == 1 else 'up to'} {lasts(wait)}",
        facts=_shown([("waiter", holder_name(wait)), ("labels", labels)]),
        asked=_lines(wait.stack, wait.site),
        now=(),
    )


def _shown(facts: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, one_line(text, 600)) for name, text in facts if text)


def _lines(stack: Sequence[Frame], site: Frame | None = None) -> tuple[Line, ...]:
    own = set(user_frames(stack, site)) or set(stack)
    return tuple(
        Line(place(each, 3), one_line(each.function, 80), each in own)
        for each in stack[:_FRAMES]
    )
