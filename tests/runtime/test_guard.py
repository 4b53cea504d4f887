"""What switches hooks off, and what is the application's own trouble."""

from __future__ import annotations

import errno

import pytest

from poolwatch.runtime.guard import Guard


@pytest.mark.parametrize(
    ("error", "tripped"),
    [
        (ValueError(), True),
        (OSError(errno.EACCES, "no permission"), True),
        (OSError(errno.EMFILE, "too many open files"), False),
        (MemoryError(), False),
        (RecursionError(), False),
    ],
)
def test_a_lack_of_resources_switches_nothing_off(caplog, error, tripped):
    guard = Guard("pool 'orders'")
    guard.failed(error)
    assert guard.tripped == tripped == bool(caplog.records)
