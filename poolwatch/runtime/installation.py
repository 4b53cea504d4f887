"""The directory of the running poolwatch, and a PYTHONPATH to import it."""

from __future__ import annotations

import os
from pathlib import Path

import poolwatch

PACKAGE = Path(poolwatch.__path__[0])
"""The directory of the package; independent of where this module lies in it."""


def python_path() -> str:
    """The PYTHONPATH with which a child process imports the same poolwatch."""
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join(filter(None, [str(PACKAGE.parent), inherited]))
