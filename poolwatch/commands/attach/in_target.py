"""What the interpreter of the process runs, as text: it imports nothing of poolwatch.

``start()`` runs in the main thread, between any two instructions of the application,
perhaps half-way through an import. So it starts a thread, which does all the rest.
"""

from __future__ import annotations

import _thread
import os
import sys
import time

TYPE_CHECKING = False  # importing typing takes time, in the main thread
if TYPE_CHECKING:
    from typing import Any

_FORK_WAITS_S = 1.0
"""Longest wait of a fork for the end of the attach."""


def start(order: dict[str, Any]) -> None:
    """Begin to carry out the order, unless it has expired."""
    if os.getpid() != order["pid"]:  # forked before it could run
        return
    expired = time.time() > order["deadline"]
    _thread.start_new_thread(_remove if expired else _work, (order,))


def _work(order: dict[str, Any]) -> None:
    def tell(answer: dict[str, Any]) -> None:
        _tell(order, answer)

    _touch(order, "began")
    busy = _thread.allocate_lock()
    busy.acquire()

    def end() -> None:
        if busy.locked():
            busy.release()

    def wait() -> None:
        if busy.acquire(timeout=_FORK_WAITS_S):
            busy.release()

    # a child that is forked during an import could never import that module
    os.register_at_fork(before=wait, after_in_child=end)
    try:
        _load(order["package"])
        from poolwatch.agent.attached import obey

        obey(order, tell)
    except BaseException as error:  # noqa: BLE001 - no error may reach the application
        # other messages may quote the application's data
        why = f": {error}" if isinstance(error, ImportError) else ""
        tell({"failed": type(error).__name__ + why})
    finally:
        end()
    if os.path.exists(order["folder"] + "/given-up"):  # noqa: PTH110
        _clean_up(order)  # the command waits no more


def _clean_up(order: dict[str, Any]) -> None:
    """Remove the files; after an undo also the copy of poolwatch, from an attach."""
    import glob

    if not order["undo"]:
        _remove(order, only_files=True)
        return
    for folder in glob.glob(order["folder"].rpartition("-")[0] + "-*"):  # noqa: PTH207
        _remove({"folder": folder})


def _touch(order: dict[str, Any], name: str) -> None:
    from contextlib import suppress

    with suppress(OSError):  # the command may have removed the directory
        os.close(os.open(order["folder"] + "/" + name, os.O_CREAT, 0o600))


def _load(package: str) -> None:
    """Load poolwatch from ``package``, if the environment has none."""
    from importlib import util

    known: Any = sys.modules.get("poolwatch")
    if known is not None:
        attached: Any = sys.modules.get("poolwatch.agent.attached")
        if os.path.exists(known.__file__) or (  # noqa: PTH110 - pathlib may be missing
            attached is not None and attached.is_attached()
        ):
            return
        for name in [n for n in sys.modules if n.partition(".")[0] == "poolwatch"]:
            del sys.modules[name]  # of an earlier attach, which was undone
    found = util.find_spec("poolwatch")
    if found is not None and found.origin is not None:
        return
    spec: Any = util.spec_from_file_location(
        "poolwatch", package + "/__init__.py", submodule_search_locations=[package]
    )
    module = sys.modules["poolwatch"] = util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _tell(order: dict[str, Any], answer: dict[str, Any]) -> None:
    import json

    path = order["folder"] + "/answer.json"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(path + ".tmp", flags, 0o600), "w") as file:
            json.dump(answer, file)
        os.rename(path + ".tmp", path)  # noqa: PTH104
    except OSError:
        pass  # nobody waits for it any more


def _remove(order: dict[str, Any], *, only_files: bool = False) -> None:
    import shutil
    from contextlib import suppress

    if not only_files:
        shutil.rmtree(order["folder"], ignore_errors=True)
        return
    for name in ("script.py", "began", "given-up", "answer.json"):
        with suppress(OSError):
            os.unlink(order["folder"] + "/" + name)  # noqa: PTH108
    with suppress(OSError):  # poolwatch may be loaded from there
        os.rmdir(order["folder"])  # noqa: PTH106


if "ORDER" in globals():
    start(globals()["ORDER"])
