"""The lock that keeps a second sidecar of one host from one socket directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from poolwatch.errors import ForbiddenError, UsageError
from poolwatch.protocol import sockets


def lock(directory: Path, host: str) -> int:
    """Return a file descriptor that holds the lock for as long as it is open.

    The kernel drops the lock with the process, however that ends; the file stays.
    Raises UsageError if another sidecar has it, or ForbiddenError.
    """
    _prepare(directory)
    name = blake2b(host.encode(), digest_size=4).hexdigest()
    path = directory / f"sidecar-{name}.lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except PermissionError:
        raise ForbiddenError(f"no permission to write {path}") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(file, 20).decode("ascii", "replace")
        os.close(file)
        who = f"pid {pid}" if pid.isdigit() else "pid unknown"
        raise UsageError(
            f"another sidecar ({who}) watches {directory} for host {host!r}"
        ) from None
    with suppress(OSError):  # the lock is what counts
        if os.getuid() == 0:  # the directory's owner may run the next one
            status = directory.stat()
            os.fchown(file, status.st_uid, status.st_gid)
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
    return file


def _prepare(directory: Path) -> None:
    try:
        sockets.check(directory)
    except FileNotFoundError:
        sockets.prepare(directory)
