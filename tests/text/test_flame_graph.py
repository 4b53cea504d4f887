"""The formats of flame graph viewers."""

from __future__ import annotations

import json

import pytest

from poolwatch.model import Frame
from poolwatch.text.flame_graph import collapsed, speedscope

SHOP = Frame("", 0, "shop")
MAIN = Frame("/srv/app/main.py", 8, "<module>")
LOAD = Frame("/srv/app/repo.py", 55, "load;\x1b[31m")


def test_speedscope_has_what_its_schema_requires():
    stacks = {(SHOP, MAIN): 1.25, (SHOP, MAIN, LOAD): 2.5}
    document = json.loads(speedscope(stacks, "held", "poolwatch 1"))
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert document["shared"]["frames"] == [
        {"name": "shop"},
        {"name": "<module>", "file": "/srv/app/main.py", "line": 8},
        {"name": "load;␛[31m", "file": "/srv/app/repo.py", "line": 55},
    ]
    assert document["profiles"] == [
        {
            "type": "sampled",
            "name": "held",
            "unit": "seconds",
            "startValue": 0,
            "endValue": 3.75,
            "samples": [[0, 1, 2], [0, 1]],
            "weights": [2.5, 1.25],
        }
    ]


def test_collapsed_stacks_are_milliseconds():
    """Whole ones, whose sum is right; no name breaks a line or a stack."""
    stacks = {(SHOP, MAIN): 1.25, (SHOP, MAIN, LOAD): 2.5}
    assert list(collapsed(stacks)) == [
        "shop;<module> (app/main.py:8);load,␛[31m (app/repo.py:55) 2500",
        "shop;<module> (app/main.py:8) 1250",
    ]
    many = {(SHOP, Frame("/a.py", line, "f")): 0.0004 for line in range(1, 1001)}
    values = [int(line.rpartition(" ")[2]) for line in collapsed(many)]
    assert sum(values) == pytest.approx(400, abs=1)


def test_an_empty_profile():
    document = json.loads(speedscope({}, "held", "poolwatch 1"))
    assert document["profiles"][0]["samples"] == []
    assert list(collapsed({})) == []
