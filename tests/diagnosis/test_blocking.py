"""The forest of lock waits: roots first, each session once, whoever it belongs to."""

from __future__ import annotations

import fakes

from poolwatch.diagnosis.blocking import forest
from poolwatch.model import Backend


def row(by=(), waited=1.0):
    if not by:
        return fakes.server_row("idle in transaction", state_age_s=waited)
    return fakes.server_row(
        wait_event="Lock:relation", blocked_by=tuple(by), state_age_s=waited
    )


def hold(pid, by=(), waited=1.0):
    return fakes.hold(f"h{pid}", backend_pid=pid, server=row(by, waited))


def foreign(pid, by=(), waited=1.0):
    return Backend(pid, 60.0, -1, "dba-laptop", row(by, waited))


def process(*holds, server="a/1", others=(), **changes):
    status = fakes.server_status(identity=server, others=tuple(others))
    return fakes.process(*holds, servers=(status,), **changes)


def tree(*processes):
    """Each session as ``(pid, depth, holds_up)``."""
    nodes = forest(fakes.snapshot(*processes))
    return [(node.session.pid, node.depth, node.holds_up) for node in nodes]


def test_nobody_waits():
    assert forest(fakes.snapshot(process(hold(1), hold(2)))) == []
    assert forest(fakes.snapshot()) == []


def test_a_chain_over_two_processes_with_a_foreign_root():
    ours = process(hold(11, [10]), hold(13, [12]), others=[foreign(10)])
    theirs = process(hold(12, [11]), hold(14, [13]), pid=9120)
    assert tree(theirs, ours) == [
        (10, 0, 4),
        (11, 1, 3),
        (12, 2, 2),
        (13, 3, 1),
        (14, 4, 0),
    ]
    root, first, second, *_ = forest(fakes.snapshot(ours, theirs))
    assert root.session.backend.application == "dba-laptop"
    assert (first.session.process, second.session.process.pid) == (ours, 9120)
    assert not any(node.cycle or node.also for node in (root, first, second))


def test_the_root_that_holds_up_most_is_first():
    found = tree(process(hold(1), hold(2, [1]), hold(5), hold(6, [5]), hold(7, [5])))
    assert found == [(5, 0, 2), (6, 1, 0), (7, 1, 0), (1, 0, 1), (2, 1, 0)]


def test_a_queue_is_under_its_head_and_no_victim_is_a_root():
    """The server names all ahead in the queue as blockers."""
    queue = [hold(2, [1], 9.0), hold(3, [1, 2], 8.0), hold(4, [1, 2, 3], 7.0)]
    nodes = forest(fakes.snapshot(process(*reversed(queue), hold(1))))
    assert [(node.session.pid, node.depth, node.holds_up) for node in nodes] == [
        (1, 0, 3),
        (2, 1, 2),
        (3, 2, 0),
        (4, 2, 0),
    ]
    assert [node.also for node in nodes] == [(), (), (1,), (1, 3)]


def test_a_foreign_victim_is_a_node():
    found = tree(process(hold(1), others=[foreign(9, [8]), foreign(8, [1])]))
    assert found == [(1, 0, 2), (8, 1, 1), (9, 2, 0)]


def test_a_prepared_transaction_and_an_unknown_session_are_roots():
    found = tree(process(hold(1, [0]), hold(2, [4711]), hold(3, [2])))
    assert found == [(4711, 0, 2), (2, 1, 1), (3, 2, 0), (0, 0, 1), (1, 1, 0)]


def test_an_idle_connection_is_a_root():
    idle = fakes.idle(7, server=fakes.server_row("idle in transaction"))
    (root, _) = forest(fakes.snapshot(process(hold(1, [7]), idle=(idle,))))
    assert root.session.idle is idle


def test_a_cycle_is_cut_at_the_longest_wait():
    """Also if somebody behind it has waited for a longer time."""
    circle = [hold(1, [2], 3.0), hold(2, [3], 5.0), hold(3, [1], 4.0)]
    nodes = forest(fakes.snapshot(process(*circle, hold(4, [1], 9.0))))
    assert [(node.session.pid, node.depth, node.holds_up) for node in nodes] == [
        (2, 0, 3),
        (1, 1, 2),
        (4, 2, 0),
        (3, 2, 0),
    ]
    assert [node.session.pid for node in nodes if node.cycle] == [2]
    assert [node.also for node in nodes] == [(3,), (), (), ()]


def test_a_cycle_under_a_root():
    nodes = forest(fakes.snapshot(process(hold(1), hold(2, [1, 3]), hold(3, [2]))))
    assert [node.session.pid for node in nodes] == [1, 2, 3]
    assert [node.cycle for node in nodes] == [False, True, False]


def test_a_session_that_waits_for_itself():
    """Only a damaged document says so."""
    assert tree(process(hold(1, [1]), hold(2, [2, 3]))) == [(3, 0, 1), (2, 1, 0)]


def test_one_pid_on_two_servers_is_two_sessions():
    """Whose identity is unknown is told apart by the host as well."""
    found = tree(
        process(hold(1), hold(2, [1]), server="a/1"),
        process(hold(1), hold(3, [1]), server="b/2"),
        process(hold(1), hold(4, [1]), server=None, host="web-1"),
        process(hold(1), hold(5, [1]), server=None, host="web-2"),
    )
    assert sorted(found) == [(1, 0, 1)] * 4 + [(pid, 1, 0) for pid in (2, 3, 4, 5)]


def test_five_hundred_sessions_in_one_queue_and_in_one_chain():
    queue = [hold(1), *(hold(pid, range(1, pid), 600 - pid) for pid in range(2, 501))]
    found = tree(process(*queue))
    assert (found[:2], len(found)) == ([(1, 0, 499), (2, 1, 498)], 500)
    chain = [hold(1), *(hold(pid, [pid - 1], pid) for pid in range(2, 501))]
    assert tree(process(*chain)) == [(pid, pid - 1, 500 - pid) for pid in range(1, 501)]
