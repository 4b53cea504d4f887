"""The addresses of a host name, and a listening socket for each."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address

from poolwatch.errors import UsageError

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""This machine lacks the address, as without IPv6; another of the host may do."""


def addresses(host: str) -> list[str]:
    """Return the addresses of a host name; raises UsageError if there is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    if not host or not found:
        raise UsageError(f"there is no host {host!r} to listen on")
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def is_loopback(address: str) -> bool:
    """Whether this is a loopback address; False for a name."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def listen(found: Sequence[str], host: str, port: int) -> list[socket.socket]:
    """Listen on one port of every address that this machine has.

    Raises UsageError if it has none of them, or if the port is in use on one.
    """
    listening: list[socket.socket] = []
    failed: OSError | None = None
    wanted = port
    for address in found:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            one = socket.create_server((address, wanted), family=family)
        except OSError as error:
            failed = error
            if error.errno not in _NOT_HERE:
                break
        else:
            listening.append(one)
            wanted = one.getsockname()[1]
    if failed is not None and not (listening and failed.errno in _NOT_HERE):
        why = os.strerror(failed.errno or 0)
        raise UsageError(f"cannot listen on {host} port {port}: {why}")
    return listening
