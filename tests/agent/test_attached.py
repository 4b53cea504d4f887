"""An attach, beside what the application does meanwhile."""

from __future__ import annotations

import os

import pytest

from poolwatch.agent import attached


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_forks_during_an_attach():
    """The child can be attached to: no thread of it holds the lock."""
    with attached._state.lock:
        pid = os.fork()
        if pid == 0:
            told = []
            attached.obey({"undo": True}, told.append)
            os._exit(told != [{"said": "not attached"}])
    assert os.waitpid(pid, 0)[1] == 0
