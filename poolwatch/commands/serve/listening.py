"""Resolves a host name, and listens on its addresses."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address

from poolwatch.errors import UsageError

_NOT_LOCAL = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""This machine lacks the address (it may lack IPv6); others of the host may work."""


def resolve(host: str) -> list[str]:
    """Return the addresses of a host name; raises UsageError if there is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    if not host or not found:
        raise UsageError(f"cannot listen on {host!r}: no such host")
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def is_loopback(address: str) -> bool:
    """Whether this is a loopback address; False for a name."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def listen(addresses: Sequence[str], host: str, port: int) -> list[socket.socket]:
    """Listen on one port of every address that this machine has.

    Raises UsageError if it has none of them, or if the port is in use on one.
    """
    listeners: list[socket.socket] = []
    failed: OSError | None = None
    bound_port = port
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            listener = socket.create_server((address, bound_port), family=family)
        except OSError as error:
            failed = error
            if error.errno not in _NOT_LOCAL:
                break
        else:
            listeners.append(listener)
            bound_port = listener.getsockname()[1]
    if failed is not None and not (listeners and failed.errno in _NOT_LOCAL):
        why = os.strerror(failed.errno or 0)
        raise UsageError(f"cannot listen on {host} port {port}: {why}")
    return listeners
