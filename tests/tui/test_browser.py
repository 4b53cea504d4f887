"""A dashboard in a browser ends when its page cannot be drawn any more."""

from __future__ import annotations

import os

import pytest

from poolwatch.tui.browser import end_unseen


class App:
    """An app that runs its callbacks for so many times."""

    def __init__(self, answers):
        self.answers = answers
        self.is_running = True

    def call_later(self, callback):
        self.answers -= 1
        if self.answers >= 0:
            callback()
        return True


@pytest.mark.parametrize("lost", ["the screen stands still", "nobody reads the pipe"])
def test_it_ends(lost):
    codes = []
    reader, writer = os.pipe()
    try:
        if lost == "nobody reads the pipe":
            os.close(reader)
        app = App(3 if lost == "the screen stands still" else 10**9)
        settings = {"every_s": 0.0, "patience_s": 0.05, "pipe": writer}
        thread = end_unseen(app, **settings, end=codes.append)
        thread.join(60)
    finally:
        os.close(writer)
        if lost != "nobody reads the pipe":
            os.close(reader)
    assert codes == [0]


def test_an_app_that_has_ended_is_left_alone():
    app, codes = App(0), []
    app.is_running = False
    end_unseen(app, end=codes.append).join(60)
    assert codes == []
