"""Which variables may a function still read, from the place where it is?

The functions under test contain no ``assert``: pytest's own calls locals().
"""

from __future__ import annotations

import sys

from poolwatch.diagnosis.references.liveness import may_read


def here(name):
    """Whether the caller may still read a variable of its own."""
    frame = sys._getframe(1)
    return may_read(frame.f_code, frame.f_lasti, name)


def read_later_and_no_more():
    value = 1
    before = here("value")
    str(value)
    return before, here("value")


def in_a_loop():
    value = 1
    seen = []
    for _ in range(2):
        str(value)
        seen.append(here("value"))
    return *seen, here("value")


def in_a_handler():
    value = 1
    seen = None
    try:
        seen = here("value")
        int("")
    except ValueError:
        str(value)
    return seen, here("value")


def a_branch(taken):
    value = 1
    seen = here("value")
    if taken:
        str(value)
    return seen


def a_closure():
    value = 1

    def closure():
        return value

    return here("value"), closure


def by_locals():
    value = 1
    str(value)
    seen = here("value")
    locals()
    return seen


def test_what_is_read_later():
    assert read_later_and_no_more() == (True, False)
    assert in_a_loop() == (True, True, False)
    assert in_a_handler() == (True, False)
    assert a_branch(False)


def test_what_is_not_known():
    assert a_closure()[0]
    assert by_locals()
    assert may_read(compile("loop = 1", "x.py", "exec"), 0, "loop")
    assert may_read(by_locals.__code__, 0, "unknown")
