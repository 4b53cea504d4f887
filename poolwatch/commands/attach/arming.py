"""The script that the process runs, in a private directory where it can read it.

The interpreter opens the file when its main thread comes to it, perhaps much later, and
prints an error if it is gone. So the file stays until it has run. To take it back, its
text is replaced by one whose time is over.

The directory is on a path that the process may control, and this may be root: no link
is followed, and all is written before the directory is given to the user.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import poolwatch
from poolwatch.commands.attach.target import Target
from poolwatch.errors import ForbiddenError, UsageError
from poolwatch.protocol import liveness
from poolwatch.protocol.liveness import Peer
from poolwatch.text.format import one_line

_PLACES = ("tmp", "var/tmp", "dev/shm")
_NAME = re.compile(r"poolwatch-attach-(\d+)-(\d+)-(\d+)-[0-9a-f]{16}")
"""Pid and start time of the process, the namespace of the pid, and a random part."""
_SCRIPT, _BEGAN, _GIVEN_UP, _ANSWER = "script.py", "began", "given-up", "answer.json"
_COPY = "poolwatch"
_PACKAGE = Path(poolwatch.__file__).parent
_NOT_NEEDED = ("__pycache__", "client", "commands", "sidecar", "testing", "tui")
"""Rooms that never run in an application."""
_MAX_ANSWER = 65536
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Armed:
    """One script with its order, and the answer to it."""

    def __init__(self, target: Target, place: str, name: str) -> None:
        """Open the directory ``name`` in ``place``; make it if it is a new one."""
        self._target = target
        self._place = _opened(target, place)
        self._name = name
        self._inside = f"/{place}/{name}"
        """The directory as the process sees it."""
        self._folder = os.open(name, _DIRECTORY, dir_fd=self._place)
        if os.fstat(self._folder).st_uid not in (os.geteuid(), target.uid):
            raise ForbiddenError(f"{self._inside} belongs to another user: not trusted")

    @classmethod
    def make(cls, target: Target, order: Mapping[str, Any]) -> Armed:
        """Write an order into a new directory."""
        space = Path("/proc/self/ns/pid").stat().st_ino
        token = secrets.token_hex(8)
        name = f"poolwatch-attach-{target.pid}-{target.started}-{space}-{token}"
        why = ""
        for place in _PLACES:
            armed = None
            try:
                os.mkdir(name, 0o700, dir_fd=_opened(target, place))
                armed = cls(target, place, name)
                armed._fill(order)
            except OSError as error:
                why = one_line(error.strerror or str(error))
                if armed is not None:
                    armed.remove(all_of_it=True)
                continue
            return armed
        raise UsageError(
            f"process {target.pid} has no directory for temporary files: {why}"
        )

    @property
    def script(self) -> str:
        """The path of the script as the process sees it."""
        return f"{self._inside}/{_SCRIPT}"

    @property
    def _path(self) -> Path:
        """The directory itself, whatever happens to its name."""
        return Path(f"/proc/self/fd/{self._folder}")

    def is_pending(self) -> bool:
        """Whether the script may still have to run."""
        return (self._path / _SCRIPT).exists() and not self.has_begun()

    def _fill(self, order: Mapping[str, Any]) -> None:
        target, package = self._target, str(_PACKAGE)
        made_by = os.fstat(self._folder).st_uid
        if made_by != os.geteuid() or any(self._path.iterdir()):
            raise ForbiddenError(f"{self._inside} was replaced meanwhile: not trusted")
        if target.uid != os.geteuid() or target.has_other_root:
            package = f"{self._inside}/{_COPY}"
            if not order["undo"]:
                ignored = shutil.ignore_patterns(*_NOT_NEEDED)
                shutil.copytree(_PACKAGE, self._path / _COPY, ignore=ignored)
        self._write({**order, "package": package})
        if target.uid != os.geteuid():
            for _, folders, files, at in os.fwalk(".", dir_fd=self._folder):
                for each in (*folders, *files):
                    os.chown(
                        each, target.uid, target.gid, dir_fd=at, follow_symlinks=False
                    )
            os.fchown(self._folder, target.uid, target.gid)

    def _write(self, order: Mapping[str, Any]) -> None:
        source = (Path(__file__).parent / "in_target.py").read_text("utf-8")
        order = {**order, "pid": self._target.inner_pid, "folder": self._inside}
        scope = f'{{"__name__": "poolwatch_attach", "ORDER": {order!r}}}'
        code = f'compile({source!r}, "poolwatch attach", "exec")'
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        folder, draft = self._folder, f"{_SCRIPT}.{secrets.token_hex(4)}"
        new = os.open(draft, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(new, "w", encoding="utf-8") as file:
                file.write(f"exec({code}, {scope})\n")
                if self._target.uid != os.geteuid():
                    os.fchown(new, self._target.uid, self._target.gid)
            os.rename(draft, _SCRIPT, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:  # the disk is full
            os.unlink(draft, dir_fd=folder)
            raise

    def disarm(self) -> None:
        """Take the order back: the script, once it runs, only removes itself.

        Raises UsageError if the disk is full.
        """
        try:
            self._write({"deadline": 0.0})
        except OSError as error:
            raise UsageError(
                f"cannot take {self.script} back: {error.strerror}"
            ) from None

    def has_begun(self) -> bool:
        """Whether the script has run, and its thread is at work."""
        return (self._path / _BEGAN).exists()

    def give_up(self) -> dict[str, Any] | None:
        """Wait no more: from now on the process removes the files itself."""
        flags = os.O_CREAT | os.O_NOFOLLOW
        with suppress(OSError):
            os.close(os.open(_GIVEN_UP, flags, 0o600, dir_fd=self._folder))
        return self.answer()

    def answer(self) -> dict[str, Any] | None:
        """The answer, if there is one yet."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(_ANSWER, flags, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ForbiddenError(f"cannot read the answer: {error.strerror}") from None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != self._target.uid:
                raise ForbiddenError("the answer is not that process's own")
            content = file.read(_MAX_ANSWER)
        with suppress(ValueError, RecursionError):
            found = json.loads(content)
            if type(found) is dict:
                return found
        return {"failed": "its answer cannot be read"}

    def remove(self, *, all_of_it: bool) -> None:
        """Remove the script, which has run; the copy of poolwatch stays in use unless
        ``all_of_it`` is to go.
        """
        for name in (_SCRIPT, _BEGAN, _GIVEN_UP, _ANSWER):
            with suppress(OSError):
                os.unlink(name, dir_fd=self._folder)
        with suppress(OSError):
            if all_of_it:
                shutil.rmtree(self._name, dir_fd=self._place)
            else:
                os.rmdir(self._name, dir_fd=self._place)


def taken_back(target: Target) -> list[Armed]:
    """The scripts that a process has not run yet, after they were disarmed."""
    pending = [each for each in of_process(target) if each.is_pending()]
    for each in pending:
        each.disarm()
    return pending


def of_process(target: Target) -> Iterator[Armed]:
    """The directories of a process, after those of ended processes were removed."""
    space = Path("/proc/self/ns/pid").stat().st_ino
    for place in _PLACES:
        try:
            names = os.listdir(_opened(target, place))
        except OSError:
            continue
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None or int(match[3]) != space:
                continue
            peer = Peer(int(match[1]), int(match[2]))
            with suppress(OSError, ForbiddenError):
                armed = Armed(target, place, name)
                if peer == Peer(target.pid, target.started):
                    yield armed
                elif liveness.state(peer) == "ended":
                    armed.remove(all_of_it=True)


def _opened(target: Target, place: str) -> int:
    """Open a directory below the root of the process, following no link."""
    at = os.open(f"/proc/{target.pid}/root", os.O_RDONLY | os.O_DIRECTORY)
    for part in place.split("/"):
        outer = at
        try:
            at = os.open(part, _DIRECTORY, dir_fd=outer)
        finally:
            os.close(outer)
    return at
