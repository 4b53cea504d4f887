"""The viewer's side of the socket: find the processes and ask them."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from poolwatch.client.calls import Calls, Outcome
from poolwatch.errors import (
    ForbiddenError,
    NoProcessError,
    PoolwatchError,
    SilentError,
    UnreachableError,
)
from poolwatch.model import Frozen, Process, Unreachable
from poolwatch.postgres.join import AgentReading
from poolwatch.protocol import document as wire
from poolwatch.protocol import liveness, sockets
from poolwatch.protocol.sockets import Address
from poolwatch.protocol.trace import Trace
from poolwatch.text.format import one_line

PATIENCE_S = 3.0
_MOST_BYTES = 256 * 1024 * 1024
"""Of an answer that are read."""


class Client:
    """Asks all instrumented processes of one directory."""

    def __init__(
        self, directory: Path | None = None, *, patience_s: float = PATIENCE_S
    ) -> None:
        """Look in ``directory``, or else where an application would put its socket."""
        self.directory = sockets.runtime_directory(directory)
        self._patience_s = patience_s
        self._calls = Calls()

    def agents(self) -> Sequence[Address]:
        """Return where processes listen; sweeps the sockets of dead ones.

        Raises NoProcessError if there are none, ForbiddenError if the directory is not
        to be trusted.
        """
        alive = []
        for address in sockets.addresses(self.directory):
            listening = _listening(address)
            if listening is None:
                sockets.sweep(address)
            else:
                alive.append(listening)
        if not alive:
            raise NoProcessError(no_process(self.directory))
        return alive

    def view(self, address: Address) -> Process:
        """Return one process as it is now; raises UnreachableError with a sentence."""
        snapshot = wire.from_json(self._get(address, "/view"))
        if len(snapshot.processes) != 1:
            raise UnreachableError("the answer is not about one process")
        return snapshot.processes[0]

    def servers(self, address: Address, *, linger: float) -> Sequence[AgentReading]:
        """Let the process read its own servers; raises UnreachableError."""
        query = urlencode({"linger": linger})
        text = self._get(address, f"/servers?{query}", patience_s=2 * PATIENCE_S)
        return wire.list_from_json(AgentReading, text, "servers")

    def traces(self, address: Address, seconds: float) -> Sequence[Trace]:
        """Let a process record its pools for so long; raises UnreachableError."""
        query = urlencode({"seconds": seconds})
        text = self._get(address, f"/trace?{query}", patience_s=seconds + PATIENCE_S)
        return wire.list_from_json(Trace, text, "traces")

    def all_traces(
        self, seconds: float
    ) -> tuple[list[tuple[Address, Sequence[Trace]]], tuple[Unreachable, ...]]:
        """Let all processes record at once; returns also those that could not."""
        addresses = self.agents()
        outcomes = self._calls.run(
            {address: partial(self.traces, address, seconds) for address in addresses},
            seconds + PATIENCE_S,
        )
        found = [(a, outcomes[a].value) for a in addresses if not _why_not(outcomes[a])]
        failed = [(a, _why_not(outcomes[a])) for a in addresses]
        return found, tuple(Unreachable(a.pid, why) for a, why in failed if why)

    def frozen(self, address: Address) -> tuple[Frozen, ...]:
        """Return the incident snapshots of one process; raises UnreachableError."""
        try:
            text = self._get(address, "/frozen")
        except _NotFoundError:
            raise UnreachableError(
                "its poolwatch is older than this one and keeps no pictures"
            ) from None
        return tuple(wire.list_from_json(Frozen, text, "frozen"))

    def all_frozen(self) -> tuple[tuple[Frozen, ...], tuple[Unreachable, ...]]:
        """Return the incident snapshots of all processes, the oldest first.

        With them the processes that gave no answer, each with a sentence. Raises what
        finding the processes raises. One thread at a time may call it.
        """
        found: list[Frozen] = []
        silent: list[Unreachable] = []
        addresses = self.agents()
        outcomes = self._calls.run(
            {address: partial(self.frozen, address) for address in addresses},
            self._patience_s,
        )
        for address in addresses:
            why = _why_not(outcomes[address])
            if why is None:
                found += outcomes[address].value
            else:
                silent.append(Unreachable(address.pid, why))
        found.sort(key=lambda each: each.at)
        return tuple(found), tuple(silent)

    def _get(
        self, address: Address, target: str, patience_s: float | None = None
    ) -> bytes:
        connection = _UnixConnection(address.path, patience_s or self._patience_s)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            body = response.read(_MOST_BYTES + 1)
        except TimeoutError:
            raise SilentError("it does not answer") from None
        except PermissionError:
            raise ForbiddenError("its socket belongs to another user") from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise UnreachableError(f"the connection broke: {why}") from None
        finally:
            connection.close()
        if response.status != http.client.OK:
            why = f"it answered {response.status} {one_line(response.reason, 60)}"
            missing = response.status == http.client.NOT_FOUND
            raise _NotFoundError(why) if missing else UnreachableError(why)
        if len(body) > _MOST_BYTES:
            raise UnreachableError("its answer has no end")
        return body


class _NotFoundError(UnreachableError):
    """The agent does not know what it was asked for."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("poolwatch", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def _why_not(outcome: Outcome) -> str | None:
    if outcome.ended is None:
        return "it does not answer in time"
    if outcome.error is None or isinstance(outcome.error, PoolwatchError):
        return str(outcome.error) if outcome.error else None
    raise outcome.error


def _listening(address: Address) -> Address | None:
    """Return the address with the process behind it; None if none listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue says so at once
        try:
            probe.connect(os.fspath(address.path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError:
            peer = liveness.owner(address.path, address.pid)
        else:
            peer = liveness.listener(probe)
    return replace(address, peer=peer)


def no_process(directory: Path) -> str:
    """Say where was looked, and how to begin."""
    return (
        f"no instrumented process found in {directory}\n"
        "add one line to the application: poolwatch.instrument(engine)\n"
        "its socket appears with the first checkout; a process that runs with another "
        "POOLWATCH_DIR is found with --dir DIRECTORY"
    )
