"""Each file here is run in a process of its own.

``pytest tests/diagnosis/references`` is such a process, and so is one for a single file
or test; a run of more tests starts one for each file.
"""

from __future__ import annotations

from pathlib import Path

import own_process

HERE = Path(__file__).parent


def pytest_pycollect_makemodule(module_path, parent):
    return own_process.collect(
        module_path, parent, lambda path: path.is_relative_to(HERE)
    )
