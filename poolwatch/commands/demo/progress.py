"""What the demo is doing, on standard error."""

from __future__ import annotations

from typing import TextIO


class Progress:
    """One line that changes on a terminal, short lines in a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()

    def say(self, text: str) -> None:
        """Say what is going on now."""
        self._write(f"\r\x1b[K{text} …" if self._terminal else f"poolwatch: {text}\n")

    def keep(self, text: str) -> None:
        """Say what shall stay to be read."""
        self.clear()
        self._write(f"poolwatch: {text}\n")

    def clear(self) -> None:
        """Take the changing line away."""
        if self._terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
