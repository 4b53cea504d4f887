"""Finds the user at the other end of a TCP connection within this machine.

Unlike an agent's Unix socket, a loopback port is open to every user of the machine.
Linux lists the owner of each connection in /proc/net/tcp.
"""

from __future__ import annotations

import os
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_TABLES = tuple(Path(f"/proc/net/{name}") for name in ("tcp", "tcp6"))
_ESTABLISHED = "01"

Address = tuple[IPv4Address | IPv6Address, int]


def is_allowed(peer: tuple[str, int], own: tuple[str, int]) -> bool:
    """Whether the client ``peer`` of the server's address ``own`` is this user or root.

    Always True on systems without /proc/net/tcp, where the owner is unknown.
    """
    tables = [table for table in _TABLES if table.exists()]
    return not tables or _owner(tables, peer, own) in (0, os.geteuid())


def _owner(
    tables: list[Path], peer: tuple[str, int], own: tuple[str, int]
) -> int | None:
    """Return the uid that owns the client's end; None if it is not listed."""
    wanted = _address(*peer), _address(*own)
    for table in tables:
        for row in table.read_text("ascii").splitlines()[1:]:
            _, local, remote, state, _, _, _, uid, *_ = row.split()
            if state == _ESTABLISHED and (_parsed(local), _parsed(remote)) == wanted:
                return int(uid)
    return None


def _address(host: str, port: int) -> Address:
    address = ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address, port


def _parsed(text: str) -> Address:
    """Parse ``0100007F:1F90``: 32-bit words in native byte order, and the port."""
    host, port = text.split(":")
    words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return _address(str(ip_address(packed)), int(port, 16))
