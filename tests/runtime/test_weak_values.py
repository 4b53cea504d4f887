"""Tables that other threads change."""

from __future__ import annotations

from poolwatch.runtime.weak_values import WeakValues


class Value:
    pass


def test_entries_come_and_go_during_an_iteration():
    values = {number: Value() for number in range(10)}
    table = WeakValues(values)
    seen = []
    for key in table:
        values[key + 100] = table[key + 100] = Value()
        values.pop(key + 1, None)
        seen.append(key)
    assert seen == list(range(10))
    assert set(table.values()) == set(values.values())
    assert dict(table.items()) == values
