"""The section at the end of a run, annotations for GitHub, and the JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poolwatch.testing.leak import Leak
from poolwatch.testing.owners import Owner
from poolwatch.text.format import one_line, plural

SCHEMA = 1


def entry(owner: Owner, leak: Leak, error: bool) -> dict[str, Any]:
    """Return a leak as plain values, for the JSON file and xdist's controller."""
    from poolwatch.testing.report import brief  # loaded for the first leak

    return {
        "severity": "error" if error else "warning",
        "test": owner.reported_node_id if owner.kind != "collection" else None,
        "owner": owner.name,
        "text": brief(leak),
        **asdict(leak),
        "site": None if leak.site is None else leak.site._asdict(),
        "stack": [frame._asdict() for frame in leak.stack],
        "now": [frame._asdict() for frame in leak.now],
    }


def write(
    terminal: Any,
    config: Any,
    entries: Sequence[Mapping[str, Any]],
    unjudged: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Write the section and the annotations, if there are any."""
    lines = _lines(entries, unjudged, quiet=config.getoption("verbose") < 0)
    lines += notes
    if lines:
        terminal.section("pool leaks")
        for line in lines:
            terminal.write_line(one_line(line))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for each in entries:
            terminal.write_line(annotation(each, config.rootpath))


def _lines(
    entries: Sequence[Mapping[str, Any]], unjudged: Mapping[str, str], *, quiet: bool
) -> list[str]:
    total = [f"{plural(len(entries), 'connection')} leaked"] if entries else []
    if quiet:
        return total
    lines = [f"{each['owner']}: {each['text']}" for each in entries]
    if unjudged:
        names = ", ".join(f"{name} ({kind})" for name, kind in sorted(unjudged.items()))
        total.append(f"not judged, since all code shares one connection: {names}")
    return [*lines, *total]


def annotation(each: Mapping[str, Any], root: Path) -> str:
    """Return GitHub's annotation for the line that checked out the connection."""
    site = each["site"]
    position = ""
    if site is not None:
        base = Path(os.environ.get("GITHUB_WORKSPACE") or root)
        path = Path(site["file"])
        file = path.relative_to(base) if path.is_relative_to(base) else path
        position = f"file={_property(file.as_posix())},line={site['line']},"
    title = _property(f"Connection leak in {each['owner']}")
    return f"::{each['severity']} {position}title={title}::{_escaped(each['text'])}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def write_json(
    path: Path,
    error: bool,
    entries: Sequence[Mapping[str, Any]],
    unjudged: Mapping[str, str],
) -> None:
    """Write leaks and unjudged pools to a file."""
    document = {
        "schema": SCHEMA,
        "mode": "error" if error else "warn",
        "leaks": list(entries),
        "unjudged": [{"pool": name, "kind": kind} for name, kind in unjudged.items()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
