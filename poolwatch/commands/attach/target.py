"""The process to attach to: whose it is, where its root is, which Python it runs.

It is read from ``/proc`` alone.
"""

from __future__ import annotations

import mmap
import os
import pwd
import re
import shutil
import struct
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from poolwatch.errors import ForbiddenError, NoProcessError, UsageError
from poolwatch.protocol import liveness, sockets

FIRST = (3, 14)
"""The first Python that runs a script for another process."""
_COOKIE = b"xdebugpy"
"""Marks the table for debuggers in CPython 3.13 and later; the version follows it."""
_PYTHON = re.compile(r"(?:lib)?python(\d)\.(\d+)[a-z]*(?:\.so.*)?")
_INTERPRETER = re.compile(r"python[\d.]*[a-z]*")


@dataclass(frozen=True)
class Target:
    """One process, as its root directory and pid namespace show it from here."""

    pid: int
    uid: int
    gid: int
    inner_pid: int
    """Its pid as it knows it itself."""
    capabilities: int
    """A set of bits, as the kernel numbers them."""
    started: int
    """Its start time in clock ticks: tells it from a later process of this pid."""

    @classmethod
    def find(cls, text: str) -> Target:
        """Return the process of a pid; raises PoolwatchError with one sentence."""
        if not re.fullmatch(r"[1-9]\d{0,9}", text):
            raise UsageError(f"{text!r:.40} is not a pid: a positive number is needed")
        if sys.platform != "linux":
            raise UsageError("attach works on Linux only")
        pid = int(text)
        try:
            status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
        except OSError:
            raise NoProcessError(f"there is no process {pid}") from None
        lines = (line.partition(":\t") for line in status.splitlines())
        fields = {name: value for name, _, value in lines}
        peer = liveness.peer(pid)
        if peer is None or liveness.state(peer) == "ended":
            raise NoProcessError(f"process {pid} has ended")
        if fields["Tgid"] != text:
            whose = fields["Tgid"]
            raise UsageError(f"{pid} is a thread: attach to its process {whose}")
        found = cls(
            pid,
            int(fields["Uid"].split()[1]),
            int(fields["Gid"].split()[1]),
            int(fields.get("NSpid", text).split()[-1]),
            int(fields["CapPrm"], 16),
            peer.started,
        )
        found._check_owner()
        return found

    def _check_owner(self) -> None:
        if os.geteuid() in (0, self.uid):
            return
        try:
            who = f"{pwd.getpwuid(self.uid).pw_name} (uid {self.uid})"
        except KeyError:
            who = f"uid {self.uid}"
        raise ForbiddenError(
            f"process {self.pid} belongs to {who}: attach as that user, or as root"
        )

    # -- its files ---------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """Its root directory, seen from here."""
        return self._proc("root") if self.has_other_root else Path("/")

    def outside(self, path: str) -> str:
        """A path as it is seen from here."""
        return f"{self.root}{path}" if self.has_other_root else path

    @cached_property
    def has_other_root(self) -> bool:
        """Whether it is in a container, or a chroot."""
        return not self._is_ours("root", "/") or not self._is_ours("ns/mnt")

    @cached_property
    def has_other_pids(self) -> bool:
        """Whether it is in another pid namespace."""
        return not self._is_ours("ns/pid")

    def _proc(self, name: str) -> Path:
        return Path(f"/proc/{self.pid}/{name}")

    def _is_ours(self, name: str, ours: str | None = None) -> bool:
        try:
            return self._proc(name).samefile(ours or f"/proc/self/{name}")
        except OSError:
            raise self._unreadable() from None

    def _unreadable(self) -> ForbiddenError:
        return ForbiddenError(
            f"the kernel does not let this user look into process {self.pid}: attach "
            "as root"
        )

    @cached_property
    def exe(self) -> str:
        """The path of its program, inside its root."""
        try:
            # after an upgrade, the file of the running program has no name
            path = str(self._proc("exe").readlink()).removesuffix(" (deleted)")
            root = str(self._proc("root").readlink())
        except PermissionError:
            raise self._unreadable() from None
        except OSError:  # a thread of the kernel
            raise self._no_python() from None
        return path.removeprefix(root) if root != "/" else path

    @property
    def is_interpreter(self) -> bool:
        """Whether its program is Python's own, and not one that embeds Python."""
        return _INTERPRETER.fullmatch(Path(self.exe).name) is not None

    def state(self) -> str:
        """What keeps its main thread from running Python, in words."""
        peer = liveness.Peer(self.pid, self.started)
        if liveness.state(peer) == "stopped":
            return "it is stopped (state T)"
        try:
            name = self._proc("wchan").read_text("utf-8", "replace").strip()
        except OSError:
            name = ""
        at = f" of the kernel ({name})" if name.isidentifier() else ""
        return f"its main thread is in a long call{at}"

    def has_ended(self) -> bool:
        """Whether it has ended, even if its pid is in use again."""
        return liveness.state(liveness.Peer(self.pid, self.started)) == "ended"

    def agent_socket(self) -> Path | None:
        """The socket of the agent that it has already."""
        for bound in liveness.sockets_of(self.pid):
            address = sockets.address_of(bound.with_suffix(".sock"))
            if address is not None and address.pid == self.inner_pid:
                return address.path
        return None

    # -- its Python --------------------------------------------------------------------

    @cached_property
    def version(self) -> tuple[int, int]:
        """The version of its Python; raises UsageError if it is too old, or none."""
        found = max(filter(None, map(self._version_of, self._programs())), default=None)
        if found is None:
            raise self._no_python()
        if found < FIRST:
            raise UsageError(
                f"process {self.pid} runs Python {_dotted(found)}: attach needs Python "
                f"{_dotted(FIRST)} or later there; start the program with poolwatch "
                "run, or call poolwatch.instrument() in it"
            )
        return found

    @property
    def python_name(self) -> str:
        """The usual name of an interpreter of its version."""
        return f"python{_dotted(self.version)}"

    def _no_python(self) -> UsageError:
        return UsageError(f"process {self.pid} runs no Python")

    def _programs(self) -> list[Path]:
        """Its program and the Python library that it has loaded, seen from here."""
        name = self.exe
        try:
            maps = self._proc("maps").read_text("utf-8", "replace")
        except OSError:
            raise self._unreadable() from None
        paths = {line.split(None, 5)[-1] for line in maps.splitlines() if "/" in line}
        outside = str(self._proc("root").readlink()) if self.has_other_root else ""
        names = [each.removeprefix(outside) for each in paths if "libpython" in each]
        libraries = [self._proc("root") / each.lstrip("/") for each in names]
        return [self._proc("exe"), Path(name), *libraries]

    @staticmethod
    def _version_of(program: Path) -> tuple[int, int] | None:
        try:
            with (
                program.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                at = content.find(_COOKIE)
                packed = content[at + 8 : at + 16]
            if at >= 0 and len(packed) == 8:
                (version,) = struct.unpack("<Q", packed)
                if version >> 24 == 3:
                    return 3, version >> 16 & 0xFF
        except (OSError, ValueError):
            pass
        match = _PYTHON.fullmatch(program.name)
        return (int(match[1]), int(match[2])) if match else None

    def interpreter(self) -> tuple[str, bool]:
        """Return a program that runs the same Python, inside the root of the process,
        and whether it may run as this user.

        As root it may only if no other user can have changed it.
        """
        wanted = self.python_name
        own = self._own_interpreter() if self.is_interpreter else None
        if self.has_other_root:
            return own or wanted, False
        if own is not None and (self.uid == os.geteuid() or _is_roots(Path(own))):
            return own, True
        if sys.version_info[:2] == self.version:
            return sys.executable, True
        found = shutil.which(wanted)
        if found is not None:
            return found, True
        if own is not None:
            return own, False
        raise UsageError(
            f"process {self.pid} has Python {_dotted(self.version)} inside of "
            f"{Path(self.exe).name}: put {wanted} on the PATH to attach to it"
        )

    def _own_interpreter(self) -> str:
        real = self.root / self.exe.lstrip("/")
        try:
            if real.samefile(self._proc("exe")):
                return self.exe
        except OSError:
            pass
        # the program was replaced by an upgrade
        return f"/proc/{self.inner_pid if self.has_other_pids else self.pid}/exe"


def _is_roots(path: Path) -> bool:
    """Whether only root can replace a file: it and the directories above are root's."""
    try:
        found = [each.stat() for each in (path, *path.parents)]
    except OSError:
        return False
    return all(each.st_uid == 0 and not each.st_mode & 0o022 for each in found)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
