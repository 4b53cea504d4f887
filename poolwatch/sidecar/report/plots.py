"""The plots, for Plotly's JavaScript, which its Python package carries.

Plotly draws SVG, so the page's style sheet colours axes and text, for the dark and for
paper. A figure is what ``Plotly.newPlot`` takes: data and layout.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from poolwatch.errors import MissingExtraError
from poolwatch.model import BUCKETS
from poolwatch.sidecar.report.faults import Fault, Span, union
from poolwatch.sidecar.report.totals import (
    MINUTE_S,
    Durations,
    PoolKey,
    PoolTotals,
    TimeLine,
    Totals,
    Usage,
)
from poolwatch.sidecar.report.words import pool_names, site_name
from poolwatch.text.format import one_line, short_time

T = TypeVar("T")
Figure = dict[str, Any]

SERIES = 6
"""Pools or call sites with a colour of their own; the rest is added up."""
LANES = 8
"""Faults with a lane of their own below the plots."""
_POOLS = ("#3f83d6", "#e08a3c", "#2fa58b", "#a06bd0", "#b99a1e", "#d2609a")
_SITES = ("#6f74d6", "#d9648f", "#3fa7bd", "#c79a2e", "#64a859", "#a9714b")
_REST = "#8b93a0"
_SEVERITY = {"critical": "#d8403a", "warning": "#d98e04", "info": "#8b93a0"}
_OUT_PX, _WAITING_PX, _LANE_PX, _GAP_PX = 230, 110, 30, 34
_TOP_PX, _BOTTOM_PX = 24, 38
_MOST_BANDS = 200
_LEAST_SHARE = 0.003
"""A shorter incident is drawn as long as this share of the plot, to be seen at all."""
_MOST_SHARE = 0.9
"""What lasted for more than this share of the time is not shaded: all would be."""


def plotly_js() -> str:
    """Return Plotly's JavaScript; raises MissingExtraError without Plotly."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("the report needs plotly", "report") from error
    return str(get_plotlyjs())


# -- over time -----------------------------------------------------------------------


def over_time(
    totals: Totals, faults: Sequence[Fault], since: float, until: float
) -> Figure:
    """Connections out and requests waiting by pool; below them a lane for each fault.

    All three share their axis of time: zooming into one zooms all.
    """
    lanes = faults[:LANES]
    heights = [_OUT_PX, _WAITING_PX, *([_LANE_PX * len(lanes)] if lanes else [])]
    rows = _rows(heights)
    data = list(_pool_traces(totals))
    layout = _layout(sum(heights) + _GAP_PX * (len(heights) - 1))
    layout["xaxis"] |= _range(since, until) | {"anchor": f"y{len(rows)}"}
    layout["hoversubplots"] = "axis"
    pools = totals.pools.values()
    peaks = max((max(pool.out_peak) for pool in pools), default=0)
    layout["yaxis"] = _count_axis(rows[0], peaks)
    peaks = max((max(pool.waiting_peak) for pool in pools), default=0)
    layout["yaxis2"] = _count_axis(rows[1], peaks)
    titles = ("connections out", "requests waiting, at most", "incidents")
    layout["annotations"] = [
        _title(title, row) for title, row in zip(titles, rows, strict=False)
    ]
    layout["shapes"] = [
        _band(span, rows[1][0], rows[0][1]) for span in _bands(faults, until - since)
    ]
    if lanes:
        layout["yaxis3"] = {
            "domain": rows[2],
            "range": [len(lanes) - 0.5, -0.5],
            "visible": False,
            "fixedrange": True,
        }
        data += [_lane(n, lane, since, until) for n, lane in enumerate(lanes)]
        layout["annotations"] += [_lane_name(n, each) for n, each in enumerate(lanes)]
    return {"data": data, "layout": layout}


def _pool_traces(totals: Totals) -> Iterator[Figure]:
    ranked = _ranked_pools(totals, pool_names(totals.pools))
    for number, (name, pool) in enumerate(ranked):
        colour = _colour(number)
        every = _line(totals.line) | {"legendgroup": name, "hoverinfo": "skip"}
        peak = _stroke(1, f"{colour}80")
        yield every | {"y": _drawn(totals.seen(pool.out_peak)), "line": peak}
        yield every | {
            "y": _drawn(totals.mean(pool.out)),
            "name": name,
            "line": _stroke(2, colour),
            "hoverinfo": "all",
            "customdata": _drawn(_figures(totals, pool)),
            "hovertemplate": "%{customdata}",
        }
        if pool.limit and max(pool.out_peak) > pool.limit / 2:
            limit = totals.seen([pool.limit] * totals.line.steps)
            yield every | {
                "y": _drawn(limit),
                "line": _stroke(1, colour) | {"dash": "dot"},
            }
        yield every | {
            "y": _drawn(totals.seen(pool.waiting_peak)),
            "yaxis": "y2",
            "line": _stroke(1.5, colour),
            "fill": "tozeroy",
            "fillcolor": f"{colour}40",
        }


def _figures(totals: Totals, pool: PoolTotals) -> list[str]:
    """What is said of a pool's steps under the pointer."""
    means = totals.mean(pool.out), totals.mean(pool.waiting)
    found = []
    for out, waiting, most_out, most in zip(
        *means, pool.out_peak, pool.waiting_peak, strict=True
    ):
        queue = f"; {waiting:.1f} waiting, at most {most}" if most else ""
        found.append("" if out is None else f"{out:.1f} out, at most {most_out}{queue}")
    return found


def _ranked_pools(
    totals: Totals, names: dict[PoolKey, str]
) -> list[tuple[str, PoolTotals]]:
    """The pools with the most connections out, and the sum of the others."""
    ranked = sorted(totals.pools.items(), key=lambda each: -sum(each[1].out))
    found = [(html.escape(names[key]), pool) for key, pool in ranked[:SERIES]]
    others = [pool for _, pool in ranked[SERIES:]]
    if others:
        rest = PoolTotals(totals.line.steps)
        for pool in others:
            rest.merge(pool)
        found.append((f"{len(others)} other pools", rest))
    return found


def _bands(faults: Sequence[Fault], length: float) -> list[Span]:
    """The longest spans in which something critical went on, but not all the time."""
    spans = union(
        _widened(span, length)
        for fault in faults
        if fault.severity == "critical"
        for span in fault.spans
        if span[1] - span[0] < length * _MOST_SHARE
    )
    return sorted(spans, key=lambda each: each[0] - each[1])[:_MOST_BANDS]


def _widened(span: Span, length: float) -> Span:
    return span[0], max(span[1], span[0] + length * _LEAST_SHARE)


def _band(span: Span, bottom: float, top: float) -> Figure:
    return {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": _time(span[0]),
        "x1": _time(span[1]),
        "y0": bottom,
        "y1": top,
        "fillcolor": _SEVERITY["critical"],
        "opacity": 0.13,
        "line": {"width": 0},
        "layer": "below",
    }


def _lane(number: int, fault: Fault, since: float, until: float) -> Figure:
    x: list[str | None] = []
    spans = union(_widened(span, until - since) for span in fault.spans)
    for begin, end in sorted(spans, key=lambda each: each[0] - each[1])[:_MOST_BANDS]:
        x += [_time(begin), _time(end), None]
    return {
        "x": x,
        "y": [number + 0.26 if at else None for at in x],
        "yaxis": "y3",
        "mode": "lines",
        "line": {"width": 7, "color": _SEVERITY[fault.severity]},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _lane_name(number: int, fault: Fault) -> Figure:
    pool = f" · {fault.worst.pool}" if fault.worst.pool else ""
    name = html.escape(one_line(f"{number + 1}  {fault.worst.kind}{pool}", 44))
    return _text(f'<a href="#fault-{number + 1}" target="_self">{name}</a>') | {
        "yref": "y3",
        "y": number - 0.2,
        "yanchor": "middle",
    }


def held_over_time(totals: Totals, since: float, until: float) -> Figure:
    """Connections held by call site, stacked."""
    data = []
    for number, (name, usage) in enumerate(_ranked_sites(totals)):
        held = totals.mean([seconds / MINUTE_S for seconds in usage.held])
        colour = _colour(number, _SITES)
        data.append(
            _line(totals.line)
            | {
                "y": _drawn(held),
                "name": name,
                "stackgroup": "held",
                "line": _stroke(0.5, colour),
                "fillcolor": f"{colour}c0",
                "hovertemplate": "%{y:.1f}",
            }
        )
    layout = _layout(_OUT_PX)
    layout["xaxis"] |= _range(since, until)
    layout["yaxis"] = _count_axis([0, 1]) | {"tickformat": ""}
    layout["annotations"] = [_title("connections held, by call site", [0, 1])]
    return {"data": data, "layout": layout}


def _ranked_sites(totals: Totals) -> list[tuple[str, Usage]]:
    """The call sites with the most connection-seconds, and the sum of the others."""
    ranked = sorted(totals.sites.items(), key=lambda each: -each[1].held_s)
    found = [(html.escape(site_name(site)), usage) for site, usage in ranked[:SERIES]]
    others = [usage for _, usage in ranked[SERIES:]]
    if others:
        rest = Usage(others[0].held[:])
        for usage in others[1:]:
            for step, value in enumerate(usage.held):
                rest.held[step] += value
        found.append((f"{len(others)} others", rest))
    return found


# -- distributions -------------------------------------------------------------------


def distribution(totals: Totals, which: str) -> Figure:
    """How many waits or holds were how long, by pool."""
    bounds = [short_time(bound) for bound in BUCKETS]
    names = [f"≤ {bound}" for bound in bounds] + [f"> {bounds[-1]}"]
    ranked = _ranked_pools(totals, pool_names(totals.pools))
    data: list[Figure] = []
    for number, (name, pool) in enumerate(ranked):
        durations: Durations = getattr(pool, which)
        if durations.count:
            data.append(
                {
                    "type": "bar",
                    "name": name,
                    "x": names,
                    "y": [n or None for n in durations.parts],
                    "marker": {"color": _colour(number)},
                    "hovertemplate": "%{y:,}",
                }
            )
    most = max((y for trace in data for y in trace["y"] if y), default=1)
    layout = _layout(190)
    layout["xaxis"] = {"type": "category", "fixedrange": True, "tickangle": -40}
    layout["yaxis"] = _count_axis([0, 1], most) | {
        "type": "log",
        "rangemode": "normal",
        "range": [-0.3, math.log10(most) + 0.2],
        "dtick": 1 if most < 1e5 else 2,
        "exponentformat": "SI",
    }
    layout["margin"] |= {"b": 58}
    layout["height"] += 58 - _BOTTOM_PX
    layout["bargap"] = 0.25
    return {"data": data, "layout": layout}


# -- parts of a figure ---------------------------------------------------------------


def _rows(heights: Sequence[int]) -> list[list[float]]:
    """The domains of rows from the top, as shares of the height."""
    whole = sum(heights) + _GAP_PX * (len(heights) - 1)
    rows, top = [], float(whole)
    for height in heights:
        rows.append([round((top - height) / whole, 4), round(top / whole, 4)])
        top -= height + _GAP_PX
    return rows


def _layout(height: int) -> Figure:
    clear = "rgba(0,0,0,0)"
    return {
        "height": height + _TOP_PX + _BOTTOM_PX,
        "margin": {"l": 38, "r": 6, "t": _TOP_PX, "b": _BOTTOM_PX, "pad": 4},
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "hovermode": "x unified",
        "hoverlabel": {"align": "left", "namelength": 44},
        "showlegend": False,
        "xaxis": {
            "type": "date",
            "showgrid": False,
            "zeroline": False,
            "hoverformat": "%a %d %b, %H:%M UTC",
            "tickangle": 0,
            "nticks": 8,
            "spikecolor": _REST,
            "spikethickness": 1,
        },
    }


def _count_axis(domain: Sequence[float], most: float = math.inf) -> Figure:
    whole = {"range": [0, most + 0.3], "dtick": 1} if most < 5 else {}
    return whole | {
        "domain": domain,
        "rangemode": "tozero",
        "fixedrange": True,
        "zeroline": False,
        "nticks": 5,
        "tickformat": "~s",
    }


def _title(text: str, row: Sequence[float]) -> Figure:
    return _text(text) | {
        "yref": "paper",
        "y": row[1],
        "yanchor": "bottom",
        "yshift": 4,
    }


def _text(text: str) -> Figure:
    return {
        "text": text,
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "showarrow": False,
        "align": "left",
    }


def _line(line: TimeLine) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        # the middle of each step; _drawn() adds one before and one behind
        "x0": _time(line.since - line.step_s / 2),
        "dx": line.step_s * 1000,
    }


def _range(since: float, until: float) -> Figure:
    return {"range": [_time(since), _time(until)]}


def _drawn(values: Sequence[T]) -> list[T]:
    """Lengthen a line by its first and last value, so that it fills its plot."""
    return [values[0], *values, values[-1]]


def _stroke(width: float, colour: str) -> Figure:
    return {"width": width, "color": colour, "shape": "hvh"}


def _colour(number: int, colours: Sequence[str] = _POOLS) -> str:
    return colours[number] if number < SERIES else _REST


def _time(at: float) -> str:
    """Plotly has no time zones: what it is given, it shows."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]
