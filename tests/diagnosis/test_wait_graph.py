"""Who can still move, by table: each node with the groups that it waits for."""

from __future__ import annotations

import time

import pytest

from poolwatch.diagnosis.wait_graph import held_up_by, stuck


def graph(text):
    """``a: b c | d`` waits for one of b and c, and for d; ``a: !`` for ever."""
    nodes = {}
    for line in text.split(";"):
        node, _, groups = line.partition(":")
        nodes[node.strip()] = [
            [] if group.strip() == "!" else group.split()
            for group in groups.split("|")
            if group.strip()
        ]
    return nodes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a:", ""),
        ("a: b", ""),  # b is not known
        ("a: b; b:", ""),
        ("a: a", "a"),
        ("a: !", "a"),
        ("a: b; b: !", "a b"),
        ("a: b; b: a", "a b"),
        ("a: b; b: c; c: a", "a b c"),
        ("a: b c; b: a; c:", ""),  # one of two is enough
        ("a: b | c; b: a; c:", "a b"),  # both are needed
        ("a: b | c; b:; c:", ""),
        ("pool: h1 h2; h1: t1; h2: t2; t1: pool; t2: pool", "pool h1 h2 t1 t2"),
        ("pool: h1 h2; h1: t1; h2: t2; t1: pool; t2:", ""),
        ("pool: h1; h1: task; task: loop; loop: t1; t1: pool", "pool h1 task loop t1"),
        (
            "p: h; h: k; k: lim | loop; lim: k2; k2: t | loop; t: p; loop:",
            "p h k lim k2 t",
        ),
        ("p: h; h: k; k: lim; lim: k2 k3; k2: t; t: p; k3:", ""),  # a token is free
        ("p: a; a: t; t: q; q: b; b: u; u: p", "p a t q b u"),
        ("p: a; a: t; t: q; q: b c; b: u; u: p; c: v", ""),
        ("a: b b b; b: a", "a b"),
        ("x: a; a: b; b: a; y:", "x a b"),
    ],
)
def test_who_is_stuck(text, expected):
    assert stuck(graph(text)) == set(expected.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b; b: a; c: a", "a b"),
        ("a: b | c; b: a; c:", "a b"),
        ("a: b c; b: a; c: a; d: c", "a b c"),
    ],
)
def test_what_holds_a_node_up(text, expected):
    nodes = graph(text)
    assert held_up_by(nodes, ["a"], stuck(nodes)) == expected.split()


def test_a_large_graph_is_followed_once():
    """1,000 holds of one pool, 500 threads that wait for it, and a long chain."""
    nodes = {"pool": [[f"h{n}" for n in range(1000)]]}
    nodes |= {f"h{n}": [[f"t{n % 500}"]] for n in range(1000)}
    nodes |= {f"t{n}": [["pool"]] for n in range(500)}
    nodes |= {f"c{n}": [[f"c{n + 1}"]] for n in range(20_000)}
    nodes["c20000"] = [["pool"]]
    began = time.process_time()
    assert len(stuck(nodes)) == len(nodes)
    assert time.process_time() - began < 1.0
    nodes["t7"] = []
    assert not stuck(nodes)
