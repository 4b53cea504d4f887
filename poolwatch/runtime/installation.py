"""Where things are: the running poolwatch, the modules of ``sys.path``, the state."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

import poolwatch

PACKAGE = Path(poolwatch.__path__[0])
"""The directory of the package; independent of where this module lies in it."""


def python_path() -> str:
    """The PYTHONPATH with which a child process imports the same poolwatch."""
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join(filter(None, [str(PACKAGE.parent), inherited]))


def state_directory() -> Path:
    """The user's own directory for what is kept: ``$XDG_STATE_HOME/poolwatch``.

    Raises RuntimeError if the user has no home, as an unknown uid in a container.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    if Path(state).is_absolute():  # the standard says to ignore any other value
        return Path(state) / "poolwatch"
    home = Path.home()
    if home == Path("/") or not home.is_absolute():
        raise RuntimeError("this user has no home directory")
    return home / ".local" / "state" / "poolwatch"


@lru_cache(maxsize=1024)
def import_path(file: str) -> str:
    """A source file relative to the entry of ``sys.path`` that it was found by.

    So the same line has the same name on every host. The file itself if there is none.
    """
    entries = (str(Path(each).absolute()) for each in sys.path if isinstance(each, str))
    above = [each for each in entries if file.startswith(each.rstrip(os.sep) + os.sep)]
    return os.path.relpath(file, max(above, key=len)) if above else file
