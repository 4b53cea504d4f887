"""The snapshot document is read back as it was; a damaged one is one sentence."""

from __future__ import annotations

import json

import pytest

import poolwatch
from poolwatch.commands.ps_table import Style, render
from poolwatch.errors import UnreachableError
from poolwatch.ledger.labels import label
from poolwatch.protocol import document as wire


def damaged(document):
    """Yield the document with one value replaced, for each value and replacement."""

    def places(value, path=()):
        yield path
        for key, each in (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list)
            else ()
        ):
            yield from places(each, (*path, key))

    for path in list(places(document))[1:]:
        for wrong in ({}, [], [[]], "x", -1, 1e999, float("nan"), 10**400, True, None):
            copy = json.loads(json.dumps(document))
            spot = copy
            for key in path[:-1]:
                spot = spot[key]
            spot[path[-1]] = wrong
            yield copy


@pytest.mark.parametrize("compact", [False, True])
def test_a_document_that_is_damaged_anywhere(instrument, sqlite, compact):
    """A wrong value is either refused with one sentence, by UnreachableError, or
    harmless: the snapshot can be printed."""
    engine = sqlite()
    instrument(engine, long_after=1e-9)
    with engine.connect():
        text = wire.to_json(poolwatch.snapshot(), viewers=True, compact=compact)
    document = json.loads(text)
    (process,) = document["processes"]
    if compact:
        document["stacks"] = [each[:1] for each in document["stacks"]]
    else:
        process["holds"][0]["stack"] = process["holds"][0]["stack"][:1]
        process["holds"][0]["now"] = []
    assert wire.from_json(json.dumps(document))
    refused = 0
    for broken in damaged(document):
        try:
            snapshot = wire.from_json(json.dumps(broken))
        except UnreachableError as error:
            refused += len(str(error)) < 500
        else:
            render(snapshot, Style(80))
    assert refused > 300


def test_a_document_is_read_back_unchanged(instrument, sqlite):
    """Viewers read what the process has recorded, to the microsecond."""
    engine = sqlite()
    instrument(engine)
    with engine.connect(), label(x="\ud800 é \x1b"):
        held = engine.raw_connection()
        snapshot = poolwatch.snapshot()
        held.close()
    text = wire.to_json(snapshot, viewers=True)
    assert text.isascii()
    again = wire.from_json(text)
    assert wire.to_json(again, viewers=True) == text
    assert again.processes[0].holds[0].stack == snapshot.processes[0].holds[0].stack
    compact = wire.to_json(snapshot, viewers=True, compact=True)
    assert compact.isascii()
    assert len(compact) < len(text)
    assert wire.from_json(compact) == again
    # the tables of one document are not those of the next
    assert wire.from_json(text) == again
