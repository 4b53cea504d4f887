"""The directory of the agents' sockets: its location and its permissions."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from poolwatch.errors import ForbiddenError, UsageError
from poolwatch.protocol.liveness import Peer

MAX_PATH_BYTES = 107
"""Maximum length in bytes of the path of a Unix socket on Linux."""

_NAME = re.compile(r"(?P<pid>[1-9]\d*)-(?P<token>[0-9a-f]+)\.sock")


@dataclass(frozen=True, slots=True)
class Address:
    """One socket in the directory."""

    path: Path
    pid: int
    peer: Peer | None = field(default=None, compare=False)
    """The listening process, if known."""


def runtime_directory(
    chosen: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """Return the socket directory: ``chosen``, POOLWATCH_DIR or the user's own.

    Raises UsageError for an invalid path (``~no-such-user``).
    """
    given = chosen or environ.get("POOLWATCH_DIR")
    if given:
        try:
            return Path(given).expanduser().absolute()
        except (RuntimeError, OSError) as error:
            raise UsageError(
                f"cannot use {given} as socket directory: {error}"
            ) from None
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "poolwatch"
    user_runtime = Path(f"/run/user/{os.getuid()}")
    if os.access(user_runtime, os.W_OK):
        return user_runtime / "poolwatch"
    return Path(tempfile.gettempdir()) / f"poolwatch-{os.getuid()}"


def prepare(directory: Path) -> None:
    """Create the directory, mode 0700, and check that it can be trusted.

    Raises ForbiddenError or UsageError with one sentence.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{directory} is not a directory") from None
    except PermissionError:
        raise ForbiddenError(f"no permission to create {directory}") from None
    except OSError as error:
        raise UsageError(f"cannot create {directory}: {error.strerror}") from None
    check(directory, own=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ForbiddenError(f"cannot write to {directory}")


def check(directory: Path, *, own: bool = False) -> None:
    """Refuse a directory that another user could have planted or can write to.

    Root may read every user's directory; with ``own``, root too must own it. Raises
    ForbiddenError or UsageError with one sentence; FileNotFoundError if it is missing.
    """
    status = _status(directory)
    if stat.S_ISLNK(status.st_mode):
        raise ForbiddenError(f"{directory} is a symbolic link: not trusted")
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{directory} is not a directory")
    is_trusted = status.st_uid in (os.getuid(), 0)
    if not is_trusted and (own or os.getuid() != 0):
        raise ForbiddenError(f"{directory} belongs to uid {status.st_uid}: not trusted")
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise ForbiddenError(
            f"other users may write to {directory}: not trusted; run chmod 700 "
            "on it, or use a directory inside it"
        )


def _status(directory: Path) -> os.stat_result:
    try:
        return directory.lstat()
    except FileNotFoundError:
        raise
    except PermissionError:
        raise ForbiddenError(f"no permission to read {directory.parent}") from None
    except NotADirectoryError:
        raise UsageError(f"{directory} is not a directory") from None
    except OSError as error:  # the name is too long, or the disk is gone
        raise UsageError(f"cannot use {directory}: {error.strerror}") from None


def new_path(directory: Path) -> Path:
    """Return the path for a new socket of this process; UsageError if too long."""
    path = directory / f"{os.getpid()}-{os.urandom(4).hex()}.sock"
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise UsageError(
            f"{directory} is too long for a Unix socket ({MAX_PATH_BYTES} bytes with "
            "the name in it); set POOLWATCH_DIR to a shorter directory"
        )
    return path


def addresses(directory: Path) -> Iterator[Address]:
    """Yield the sockets in a directory by pid; none if there is no such directory.

    Raises ForbiddenError or UsageError if the directory cannot be used.
    """
    try:
        check(directory)
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return
    except PermissionError:
        raise ForbiddenError(f"no permission to read {directory}") from None
    except OSError as error:
        raise UsageError(f"cannot read {directory}: {error.strerror}") from None
    found = [(_NAME.fullmatch(name), name) for name in names]
    pids = [(int(match["pid"]), name) for match, name in found if match]
    for pid, name in sorted(pids):
        yield Address(directory / name, pid)


def address_of(path: Path) -> Address | None:
    """Return the address of a path that an agent may have chosen."""
    match = _NAME.fullmatch(path.name)
    return Address(path, int(match["pid"])) if match else None


def sweep(address: Address) -> None:
    """Remove the socket of a dead process, if this user or root owns it."""
    try:
        status = address.path.lstat()
        if stat.S_ISSOCK(status.st_mode) and status.st_uid in (os.getuid(), 0):
            address.path.unlink()
    except OSError:
        pass  # another viewer has removed it
