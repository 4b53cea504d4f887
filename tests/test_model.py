"""Frames are immutable values."""

from __future__ import annotations

import copy
import pickle

import pytest

from poolwatch.model import Frame


def test_a_frame_cannot_be_changed():
    frame = Frame("app.py", 1, "work")
    with pytest.raises(AttributeError):
        frame.line = 2
    with pytest.raises(AttributeError):
        del frame.line
    assert repr(frame) == "Frame(file='app.py', line=1, function='work')"
    for same in (copy.deepcopy(frame), pickle.loads(pickle.dumps(frame))):
        assert same == frame
        assert hash(same) == hash(frame)
    assert frame._replace(line=2) == Frame("app.py", 2, "work") != frame
