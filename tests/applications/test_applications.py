"""Real applications from the package index, when POOLWATCH_APPLICATIONS=1 asks for it.

Their environments are made in POOLWATCH_APPLICATIONS_DIR, by default in the directory
for temporary files, and are kept for the next run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.processes,
    pytest.mark.skipif(
        os.environ.get("POOLWATCH_APPLICATIONS") != "1",
        reason="installs large applications; set POOLWATCH_APPLICATIONS=1",
    ),
    pytest.mark.timeout(1800),
]


@pytest.mark.parametrize("application", ["mlflow", "jupyterhub", "installed"])
def test_application(application):
    """The rig finds what is expected, and nothing else."""
    home = os.environ.get("POOLWATCH_APPLICATIONS_DIR") or tempfile.gettempdir()
    venv = Path(home) / f"poolwatch-{application}"
    done = subprocess.run(
        [sys.executable, HERE / f"{application}_rig.py", "--venv", venv, "--make-venv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
