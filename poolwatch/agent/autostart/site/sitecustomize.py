"""Runs at the start of every Python under ``poolwatch run``.

An error here must leave no trace in the user's program.
"""

import os
import sys


def _next_sitecustomize() -> None:
    """Run the sitecustomize that this file hides, if there is one."""
    import importlib.machinery
    import importlib.util

    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib is not loaded yet
    paths = [path for path in sys.path if os.path.abspath(path) != here]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


try:
    from poolwatch.agent.autostart import begin

    begin()
except Exception:  # noqa: BLE001, S110 - see above
    pass
_next_sitecustomize()
