"""Findings over time: since, for, over, and how often they were seen."""

from __future__ import annotations

import fakes

from poolwatch.diagnosis.finding_history import FindingHistory
from poolwatch.model import FleetFinding, Unreachable

SITE = fakes.frame("/srv/app/orders.py:55", "load")
START = 1_793_000_000.0


class Looks:
    """One look a second."""

    def __init__(self):
        self.history, self.at = FindingHistory(), START

    def see(self, *processes, seconds=1.0, **changes):
        self.at += seconds
        self.history.update(fakes.snapshot(*processes, **changes), self.at)

    def open(self):
        return [(e.key.kind, e.since - START) for e in self.history.open]

    def over(self):
        return [(e.key.kind, e.over - START) for e in self.history.over]


def worker(pid, *kinds, **changes):
    found = [fakes.finding(kind, sites=(SITE,), **changes) for kind in kinds]
    return fakes.process(pid=pid, findings=tuple(found))


def test_begins_and_ends_like_an_incident():
    looks = Looks()
    looks.see(worker(1, "long_hold"))
    assert looks.open() == [("long_hold", 1)]
    assert not looks.history.open[0].begun
    looks.see(worker(1, "long_hold"), worker(2, "long_hold"))
    (entry,) = looks.history.open
    assert (entry.begun, entry.seen, len(entry.merged.processes)) == (True, 2, 2)
    looks.see(worker(2, "long_hold"), worker(1))
    for _ in range(2):
        looks.see(worker(1), worker(2))
        assert (looks.open(), looks.over()) == ([("long_hold", 1)], [])
    looks.see(worker(1), worker(2))
    assert (looks.open(), looks.over()) == ([], [("long_hold", 3)])
    assert entry.lasts(looks.at) == 2.0
    assert entry.merged.members == ()  # no snapshot is kept for its sake
    looks.see(worker(1, "long_hold"))
    assert (looks.open(), looks.over()) == ([("long_hold", 7)], [])
    assert looks.history.of(entry.key).seen == 4


def test_one_look_alone_is_a_passing_moment():
    looks = Looks()
    looks.see(worker(1, "nested"))
    looks.see(worker(1))
    assert (looks.open(), looks.over()) == ([], [])
    looks.see(worker(1, "nested"))
    assert looks.history.open[0].seen == 2  # but it is counted


def test_the_findings_of_a_silent_process_last():
    looks = Looks()
    for _ in range(2):
        looks.see(worker(1, "long_hold"), worker(2, "ghost"))
    silent = Unreachable(2, "it does not answer", alive=True)
    for _ in range(5):
        looks.see(worker(1, "long_hold"), unreachable=(silent,))
    assert looks.open() == [("unreachable", 3), ("long_hold", 1), ("ghost", 1)]
    unseen = looks.history.open[2]
    assert (unseen.last_seen, unseen.merged.who) == (START + 2, "orders-api (pid 2)")
    for _ in range(3):
        looks.see(worker(1, "long_hold"))
    assert looks.over() == [("unreachable", 7), ("ghost", 2)]


def test_timeouts_that_no_look_has_seen():
    def pool(timeouts):
        counted = fakes.pool(counters=fakes.counters(timeouts=timeouts))
        return fakes.process(pools=(counted,))

    looks = Looks()
    looks.see(pool(0))
    looks.see(pool(3))
    (entry,) = looks.history.open
    assert entry.key == ("exhausted", "orders", (), "")
    assert "3 requests" in entry.merged.text
    for _ in range(3):
        looks.see(pool(3))
    assert looks.over() == [("exhausted", 2)]
    looks.see(pool(3), seconds=700.0)
    assert looks.over() == []


def test_a_lock_keeps_its_identity_while_its_victims_change():
    def locked(*pids):
        holds = [
            fakes.hold("h1", backend_pid=1, server=fakes.server_row("idle")),
            *(
                fakes.hold(
                    f"h{pid}",
                    backend_pid=pid,
                    site=fakes.frame(f"/srv/w.py:{pid}"),
                    server=fakes.server_row(blocked_by=(1,), wait_event="Lock:tuple"),
                )
                for pid in pids
            ),
        ]
        found = [
            fakes.finding("lock_wait", holds=(hold.id,), sites=(hold.site,))
            for hold in holds[1:]
        ]
        return fakes.process(*holds, findings=tuple(found))

    looks = Looks()
    for pids in ((2, 3), (3, 4), (5, 6), (6, 7), (8, 9)):
        looks.see(locked(*pids))
    assert looks.open() == [("lock_wait", 1)]
    assert (len(looks.history.open), looks.history.over) == (1, [])


def test_findings_over_all_hosts():
    looks = Looks()
    wide = FleetFinding("over_capacity", "warning", None, "too many", "", "")
    looks.see(worker(1), findings=(wide,))
    assert looks.history.open[0].begun
    looks.see(worker(1))
    assert looks.over() == [("over_capacity", 1)]


def test_the_strip():
    looks = Looks()
    for n in range(20):
        looks.see(worker(1, *(["long_hold"] if n % 2 else [])), seconds=30.0)
    (entry,) = looks.history._entries.values()
    assert entry.strip(looks.at) == [False, True] * 10
    assert entry.strip(looks.at + 570.0) == [True] + [False] * 19
    assert entry.strip(looks.at - 7200.0) == [False] * 20  # the clock was put back


def test_bounded_by_number_and_time():
    looks = Looks()
    for n in range(540):
        site = fakes.frame(f"/srv/gen.py:{n}")
        found = [fakes.finding("leaked.collected", sites=(site,))]
        found.append(fakes.finding("ghost", sites=(SITE,)))
        looks.see(fakes.process(findings=tuple(found)), seconds=0.1)
    assert len(looks.history._entries) == 500
    assert ("ghost", 0.1) in [(kind, round(at, 1)) for kind, at in looks.open()]
    assert len(looks.history._entries[looks.history.over[0].key].cells) <= 41
    looks.see(worker(1, "ghost"), seconds=601.0)
    for _ in range(5):
        looks.see(worker(1, "ghost"), seconds=200.0)
    assert looks.over() == []
    assert len(looks.history._entries) == 1
