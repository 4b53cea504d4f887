"""When incidents begin and end, look by look."""

from __future__ import annotations

from datetime import UTC, datetime

import fakes
import pytest

from poolwatch.diagnosis.incidents import Incidents
from poolwatch.model import Snapshot, Unreachable

SITE = fakes.frame("/srv/app/orders.py:55", "load")
OTHER = fakes.frame("/srv/app/stock.py:7", "count")
START = datetime(2026, 1, 1, 12, 5, tzinfo=UTC).timestamp()


def finding(kind="long_hold", *sites, **changes):
    return fakes.finding(kind, sites=sites or (SITE,), **changes)


def timeouts(count, *findings, **changes):
    counted = fakes.pool(counters=fakes.counters(timeouts=count))
    return fakes.process(pools=(counted,), findings=findings, **changes)


class Looks:
    """One look a second; what each has changed, as lists of ids."""

    def __init__(self, lasting=()):
        self.incidents = Incidents(lasting)
        self.at = START
        self.began, self.ended, self.lasting = [], [], []

    def see(self, *processes, unreachable=()):
        self.at += 1
        snapshot = Snapshot(processes, tuple(unreachable))
        changes = self.incidents.update(snapshot, self.at)
        self.began += [each.incident for each in changes.began]
        self.ended += changes.ended
        self.lasting = list(changes.lasting)
        self.moments = [each.process for each in changes.began]
        return len(changes.began), len(changes.ended), len(changes.lasting)

    def see_findings(self, *findings):
        return self.see(fakes.process(findings=findings))


def iso(at):
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def test_begins_with_the_second_look_and_ends_with_the_third_without():
    looks = Looks()
    assert looks.see_findings(finding()) == (0, 0, 0)
    assert looks.see_findings(finding(text="more")) == (1, 0, 1)
    assert looks.see_findings(finding(text="and more")) == (0, 0, 1)
    last_seen = looks.at
    assert [looks.see_findings() for _ in range(3)] == [(0, 0, 1)] * 2 + [(0, 1, 0)]
    (began,), (ended,) = looks.began, looks.ended
    assert (began.host, began.pid, began.process) == ("web-1", 8812, "orders-api")
    assert (began.pool, began.started_at, began.ended_at) == (
        "orders",
        iso(START + 2),
        None,
    )
    assert ended.id == began.id
    assert (ended.started_at, ended.text) == (began.started_at, "and more")
    assert ended.ended_at == ended.last_seen_at == iso(last_seen)
    assert looks.see_findings(finding()) == (0, 0, 0)


def test_a_gap_of_two_looks_ends_nothing():
    looks = Looks()
    seen = [looks.see_findings(*found) for found in ([finding()], [], [], [finding()])]
    assert seen[-1] == (1, 0, 1)
    for _ in range(3):
        looks.see_findings()
        looks.see_findings()
        assert looks.see_findings(finding()) == (0, 0, 1)


@pytest.mark.parametrize(
    ("kind", "error", "ends"),
    [("lock_wait", "no answer", False), ("lock_wait", None, True),
     ("long_hold", "no answer", True)],
)  # fmt: skip
def test_a_look_that_cannot_see_a_finding_does_not_miss_it(kind, error, ends):
    """What only the server shows lasts until it answers again."""
    looks = Looks()
    looks.see_findings(finding(kind))
    looks.see_findings(finding(kind))
    status = fakes.server_status(error=error)
    for _ in range(5):
        looks.see(fakes.process(servers=(status,)))
    assert bool(looks.ended) is ends
    answers = fakes.process(servers=(fakes.server_status(),))
    for _ in range(3):
        looks.see(answers)
    assert len(looks.ended) == 1


@pytest.mark.parametrize("kind", ["pool_deadlock", "leaked.collected"])
def test_some_kinds_begin_at_once(kind):
    assert Looks().see_findings(finding(kind)) == (1, 0, 1)


def test_call_sites_tell_findings_apart_but_not_those_of_a_whole_pool():
    looks = Looks()
    for sites in ([SITE], [SITE, OTHER], [OTHER]):
        looks.see_findings(
            finding("exhausted", *sites),
            finding("long_hold", SITE),
            finding("long_hold", OTHER),
        )
    assert [each.kind for each in looks.began] == [
        "exhausted",
        "long_hold",
        "long_hold",
    ]
    assert len(looks.lasting) == 3


class TestTimeouts:
    def test_the_count_tells_what_no_look_has_seen(self):
        looks = Looks()
        looks.see(timeouts(2))  # before the first look
        assert looks.see(timeouts(2)) == (0, 0, 0)
        assert looks.see(timeouts(5)) == (1, 0, 1)
        (began,) = looks.began
        assert (began.kind, began.pool) == ("exhausted", "orders")
        assert began.text.endswith("3 requests for a connection timed out")
        assert [each.kind for each in looks.moments[0].findings] == ["exhausted"]

    def test_those_of_a_process_that_appears_later_are_new(self):
        looks = Looks()
        looks.see()
        assert looks.see(timeouts(1)) == (1, 0, 1)

    def test_those_of_a_process_that_was_silent_may_be_old(self):
        looks = Looks()
        looks.see(unreachable=[Unreachable(8812, "silent", alive=True)])
        assert looks.see(timeouts(1)) == (0, 0, 0)

    def test_a_finding_begins_with_its_first_timeout(self):
        looks = Looks()
        looks.see(timeouts(0))
        assert looks.see(timeouts(1, finding("exhausted", text="10/10"))) == (1, 0, 1)
        assert looks.began[0].text == "10/10"


class TestProcesses:
    def test_one_that_is_gone_ends_its_incidents(self):
        looks = Looks()
        other = fakes.process(pid=9, findings=(finding(),))
        for _ in range(2):
            looks.see(fakes.process(findings=(finding(),)), other)
        assert looks.see(other) == (0, 1, 1)
        ended = Unreachable(9, "it has ended", alive=False)
        assert looks.see(unreachable=[ended]) == (0, 1, 0)
        assert [each.pid for each in looks.ended] == [8812, 9]

    @pytest.mark.parametrize("alive", [True, None])
    def test_one_that_is_silent_neither_ends_nor_refreshes_them(self, alive):
        looks = Looks()
        looks.see_findings(finding())
        looks.see_findings(finding())
        seen_at = looks.lasting[0].last_seen_at
        silent = Unreachable(8812, "it does not answer", alive=alive)
        for _ in range(5):
            assert looks.see(unreachable=[silent]) == (0, 0, 1)
        assert looks.lasting[0].last_seen_at == seen_at
        assert looks.see_findings(finding()) == (0, 0, 1)

    def test_a_pid_that_is_used_again(self):
        looks = Looks()
        looks.see_findings(finding())
        looks.see_findings(finding())
        later = fakes.process(findings=(finding(),), started_at="2026-01-01T12:05:02Z")
        assert looks.see(later) == (0, 1, 0)
        assert looks.see(later) == (1, 0, 1)

    def test_the_same_fault_in_many_is_as_many_incidents(self):
        looks = Looks()
        many = [fakes.process(pid=pid, findings=(finding(),)) for pid in range(1, 51)]
        looks.see(*many)
        assert looks.see(*many) == (50, 0, 50)
        assert len({each.id for each in looks.began}) == 50


class TestRestart:
    def lasting(self):
        before = Looks()
        before.see_findings(finding(), finding("exhausted"))
        before.see_findings(finding(), finding("exhausted"))
        return before.lasting

    def test_goes_on_under_the_same_ids(self):
        known = self.lasting()
        looks = Looks(known)
        assert looks.see_findings(finding(), finding("exhausted", OTHER)) == (0, 0, 2)
        assert [each.id for each in looks.lasting] == [each.id for each in known]
        assert looks.see_findings(finding("exhausted")) == (0, 0, 2)
        looks.see_findings(finding("exhausted"))
        assert looks.see_findings(finding("exhausted")) == (0, 1, 1)

    def test_a_process_that_has_gone_meanwhile(self):
        assert Looks(self.lasting()).see() == (0, 2, 0)

    def test_another_process_with_its_pid(self):
        later = fakes.process(findings=(finding(),), started_at="2026-01-01T13:00:00Z")
        looks = Looks(self.lasting())
        assert looks.see(later) == (0, 2, 0)
        assert looks.see(later) == (1, 0, 1)

    def test_a_process_that_is_silent(self):
        looks = Looks(self.lasting())
        silent = Unreachable(8812, "it does not answer", alive=True)
        assert looks.see(unreachable=[silent]) == (0, 0, 0)
        assert looks.see_findings(finding(), finding("exhausted")) == (0, 0, 2)
