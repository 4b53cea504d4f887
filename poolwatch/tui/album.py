"""Ask for the kept pictures, only when told to, on a thread of its own.

They are not part of a reading: fetching them at every refresh would cost the
applications for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from poolwatch.errors import PoolwatchError
from poolwatch.model import Frozen, Source, Unreachable
from poolwatch.text.frozen import KeepsPictures


@dataclass(frozen=True, slots=True)
class Album:
    """The pictures of all processes, or why there are none."""

    frozen: tuple[Frozen, ...] = ()
    """The newest first."""
    unreachable: tuple[Unreachable, ...] = ()
    error: str | None = None


def open_album(source: Source) -> Album:
    """Ask once; whatever goes wrong becomes a sentence."""
    if not isinstance(source, KeepsPictures):
        return Album(error="this source keeps no pictures")
    try:
        frozen, unreachable = source.all_frozen()
    except PoolwatchError as error:
        return Album(error=str(error))
    except Exception as error:  # noqa: BLE001 - a source that breaks must not end the view
        return Album(error=f"the source failed: {type(error).__name__}: {error}")
    newest = sorted(frozen, key=lambda picture: picture.at, reverse=True)
    return Album(tuple(newest), unreachable)


class Asker:
    """Asks when told to; never two questions at a time."""

    def __init__(self, source: Source, tell: Callable[[Album], object]) -> None:
        self._source = source
        self._tell = tell
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Begin a question, unless one is still out: its answer is as good."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name="poolwatch-frozen", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        self._tell(open_album(self._source))
