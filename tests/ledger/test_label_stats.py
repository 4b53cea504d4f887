"""Statistics by label: what they count, and that they are bounded."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing

from fix_core import Look, book_of, null_pool_of
from helpers import until

import poolwatch
from poolwatch.ledger.label_stats import MAX_LABELS, MAX_VALUES, LabelStats
from poolwatch.model import OTHER_VALUES


def by_value(label):
    return {e.value: e for e in Look().process.labels if e.label == label}


def test_holds_are_counted_by_each_of_their_labels(instrument):
    pool = null_pool_of()
    instrument(pool)
    for endpoint in ("/orders", "/orders", "/cart"):
        with poolwatch.label(endpoint=endpoint, tenant=7), closing(pool.connect()):
            pass
    pool.connect().close()
    with poolwatch.label(endpoint="/cart"), closing(pool.connect()):
        endpoints = by_value("endpoint")
        assert {value: e.count for value, e in endpoints.items()} == {
            "/orders": 2,
            "/cart": 2,
        }
        assert endpoints["/cart"].hold_s.count == 1
        assert all(each.connections > 0 for each in endpoints.values())
    assert by_value("tenant")["7"].count == 3
    assert by_value("tenant")["7"].wait_s.count == 3


def test_waits_are_caused_by_the_labels_of_the_holders(instrument):
    pool = null_pool_of(pool_size=1, max_overflow=0)
    instrument(pool)

    def ask():
        with poolwatch.label(endpoint="/cart"), closing(pool.connect()):
            pass

    with poolwatch.label(endpoint="/orders"):
        held = pool.connect()
    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: by_value("endpoint")["/orders"].wait_caused_s > 0.01)
    held.close()
    thread.join()
    endpoints = by_value("endpoint")
    assert endpoints["/orders"].wait_caused_s > 0.01
    assert endpoints["/cart"].wait_caused_s == 0
    assert endpoints["/cart"].wait_s.max > 0.01


def test_a_leak_is_counted_by_its_labels(instrument):
    pool = null_pool_of()
    watch = instrument(pool)
    with poolwatch.label(endpoint="/forgets"):
        pool.connect()
    assert Look().counters(watch).collected == 1
    assert by_value("endpoint")["/forgets"].leaked == 1


def test_labels_without_end_are_counted_together(instrument):
    pool = null_pool_of()
    instrument(pool)
    for n in range(10 * MAX_VALUES):
        with poolwatch.label(request=n), closing(pool.connect()):
            pass
    requests = by_value("request")
    assert len(requests) == MAX_VALUES + 1
    assert requests[OTHER_VALUES].count == 9 * MAX_VALUES
    for n in range(10 * MAX_LABELS):
        with poolwatch.label(**{f"label{n}": "x"}), closing(pool.connect()):
            pass
    assert len({each.label for each in Look().process.labels}) == MAX_LABELS


def test_a_fork_starts_over(instrument):
    pool = null_pool_of()
    instrument(pool)
    with poolwatch.label(endpoint="/orders"), closing(pool.connect()):
        pass
    book_of(pool).forget()
    assert by_value("endpoint") == {}


def test_values_are_kept_apart_from_each_other():
    stats = LabelStats()
    labels = [{"a": value, "b": value} for value in ("x", "y")]
    found = list(itertools.chain.from_iterable(map(stats.of, labels)))
    assert len({id(each) for each in found}) == 4
    assert [id(each) for each in stats.of(labels[0])] == [id(e) for e in found[:2]]
