"""What the finding about an empty pool says of those who have its connections."""

from __future__ import annotations

import fakes
import pytest

from poolwatch.diagnosis.pools import exhausted

EXH = fakes.frame("/srv/app/exh.py:6", "work")
RECV = fakes.frame("/usr/lib/python3.12/socket.py:706", "recv_into")


def at(line):
    return fakes.frame(f"/srv/app/exh.py:{line}", "work")


def text(*holds, waits=1, **changes):
    pool = fakes.pool(**{"size": len(holds), "max_overflow": 0, **changes})
    waiting = [fakes.wait(f"w{n}", waited_s=float(n + 1)) for n in range(waits)]
    (finding,) = exhausted(pool, holds, waiting)
    return finding.text


def holds(count, prefix="h", **changes):
    return [
        fakes.hold(f"{prefix}{n}", **{"site": EXH, **changes}) for n in range(count)
    ]


def test_who_has_the_connections_and_who_waits():
    leaked = holds(4, "k", site=at(9), verdict="leaked", now=(at(99),))
    said = text(
        *leaked,
        *holds(6, now=(RECV, at(7))),
        waits=40,
        counters=fakes.counters(timeouts=40),
    )
    assert said == (
        "pool 'orders' is empty: 10 of 10 out, 40 wait (oldest 40s of 30s), 40 timed "
        "out so far. 6 at app/exh.py:6 (on the network at :7), 4 leaked at app/exh.py:9"
    )


def test_no_more_than_three_call_sites():
    said = text(*[fakes.hold(f"h{n}", site=at(n)) for n in range(5)], timeout_s=None)
    assert "1 waits (oldest 1.0s)." in said
    assert said.endswith("1 at app/exh.py:2, 2 elsewhere")


@pytest.mark.parametrize(
    ("stacks", "words"),
    [
        ([(at(7),), (at(7),)], " (now at :7)"),  # without its source: only the line
        ([(RECV, at(7)), (RECV, at(8))], ""),
        ([(RECV, at(7)), ()], ""),
        ([(RECV, fakes.frame("/srv/app/lib.py:3")), (at(7),)], ""),
        (
            [(RECV, fakes.frame("/srv/app/lib.py:3"), at(7))] * 2,
            " (on the network at app/lib.py:3)",
        ),
    ],
)
def test_what_they_do_is_said_if_all_of_them_do_it(stacks, words):
    several = [
        fakes.hold(f"h{n}", site=EXH, now=stack) for n, stack in enumerate(stacks)
    ]
    assert text(*several).endswith(f"2 at app/exh.py:6{words}")
