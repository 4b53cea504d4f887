"""A dashboard ends when nobody can see it any more."""

from __future__ import annotations

import os
import pty
import select

import pytest

from poolwatch.tui.unseen import end_unseen


class App:
    """An app that runs its callbacks for so many times."""

    def __init__(self, answers=0, *, is_web=True):
        self.answers = answers
        self.is_web = is_web
        self.is_running = True

    def call_later(self, callback):
        self.answers -= 1
        if self.answers >= 0:
            callback()
        return True


def codes_of(app, seen_by):
    codes = []
    settings = {"every_s": 0.0, "patience_s": 0.05, "seen_by": seen_by}
    end_unseen(app, **settings, end=codes.append).join(60)
    return codes


@pytest.mark.parametrize("where", ["page", "terminal"])
def test_the_other_end_is_gone(where):
    theirs, ours = pty.openpty() if where == "terminal" else os.pipe()
    os.close(theirs)
    try:
        assert codes_of(App(10**9, is_web=where == "page"), ours) == [0]
    finally:
        os.close(ours)


def test_a_page_stands_still():
    reader, writer = os.pipe()
    try:
        assert codes_of(App(3), writer) == [0]
        assert not select.select([reader], [], [], 0)[0]  # nothing was written
    finally:
        os.close(reader)
        os.close(writer)


def test_an_app_that_has_ended_is_left_alone():
    app = App()
    app.is_running = False
    assert codes_of(app, 0) == []
