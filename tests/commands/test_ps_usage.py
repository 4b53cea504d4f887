"""``poolwatch ps --by LABEL``: the table and the document."""

from __future__ import annotations

import json

from fakes import pool, process, snapshot, times

from poolwatch.commands.ps import _with_labels
from poolwatch.commands.ps_table import Style, render
from poolwatch.model import NO_SAMPLES, LabelStats
from poolwatch.protocol import document


def stats(value="/orders", label="endpoint", **changes):
    values = {
        "pool": "orders",
        "label": label,
        "value": value,
        "count": 12,
        "connections": 1.234,
        "hold_s": times(0.3),
        "wait_s": NO_SAMPLES,
        "leaked": 1,
        "in_sql_s": 5.0,
        "in_transaction_idle_s": 2.5,
        "wait_caused_s": 8.0,
    }
    return LabelStats(**{**values, **changes})


def shown(*labels, by="endpoint", columns=120):
    picture = snapshot(process(pools=(pool(),), labels=labels))
    return render(picture, Style(columns, sites=True, by=by))


def test_the_values_of_a_label():
    told = shown(stats(), stats("/cart", wait_caused_s=9.0), stats("7", "tenant"))
    title, upper, lower, first, second = told.splitlines()[-5:]
    assert title == "  values of label 'endpoint' of orders, costliest first:"
    assert lower.split()[:3] == ["endpoint", "COUNT", "HELD"]
    assert first.split() == [
        *("/cart", "12", "1.23", "75ms", "150ms", "300ms", "9s", "50", "25", "1")
    ]
    assert second.split()[0] == "/orders"
    assert "WAIT" in upper
    assert "tenant" not in told


def test_the_rest_is_counted():
    told = shown(*(stats(f"/{n}") for n in range(25)))
    assert told.splitlines()[-1] == "  and 5 more (poolwatch ps --json)"


def test_a_label_that_nobody_carries():
    assert shown(stats(), by="tenant").endswith(
        "no hold carried the label 'tenant'; labels of its holds: endpoint"
    )
    assert shown(by="tenant").endswith("carry no labels: see poolwatch.label()")


def test_values_and_names_are_one_line():
    told = shown(stats("evil\x1b[2J\nvalue"), columns=80)
    assert "\x1b" not in told
    assert max(map(len, told.splitlines())) <= 80


def test_the_document_has_them_on_request():
    picture = snapshot(process(labels=(stats(), stats("7", "tenant"))))
    (plain,) = document.to_document(picture)["processes"]
    assert "labels" not in plain
    found = json.loads(json.dumps(_with_labels(picture, "endpoint")))
    assert found["schema"] == 1
    (with_labels,) = found["processes"]
    assert [each["value"] for each in with_labels.pop("labels")] == ["/orders"]
    assert with_labels == plain
    assert document.from_json(document.to_json(picture, viewers=True)) == picture
