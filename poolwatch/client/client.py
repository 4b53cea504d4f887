"""The HTTP client of the agents: finds their sockets and sends requests."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from poolwatch.client.calls import Calls, Outcome
from poolwatch.errors import (
    ForbiddenError,
    NoProcessError,
    PoolwatchError,
    SilentError,
    UnreachableError,
)
from poolwatch.model import IncidentSnapshot, Process, Unreachable
from poolwatch.protocol import document, liveness, sockets
from poolwatch.protocol.records import AgentReading, Trace
from poolwatch.protocol.sockets import Address
from poolwatch.text.format import one_line

PATIENCE_S = 3.0
_MAX_MIB = 64
"""Largest response that is read: 10,000 holds take a tenth of it."""


class Client:
    """Sends requests to the instrumented processes of one socket directory."""

    def __init__(
        self, directory: Path | None = None, *, patience_s: float = PATIENCE_S
    ) -> None:
        """``directory``: where to look for sockets; None for the usual directory."""
        self.directory = sockets.runtime_directory(directory)
        self._patience_s = patience_s
        self._calls = Calls()
        self._looked_before = False

    def agents(self) -> Sequence[Address]:
        """Return the addresses of listening processes; removes dead sockets.

        The first time also of those whose socket file is gone: who knows a process
        does not lose it.

        Raises NoProcessError if there are none, ForbiddenError if the directory cannot
        be trusted.
        """
        alive = []
        for address in sockets.addresses(self.directory):
            listening = _listening(address)
            if listening is None:
                sockets.sweep(address)
            else:
                alive.append(listening)
        if not self._looked_before:
            self._looked_before = True
            alive += _without_file(self.directory)
        if not alive:
            raise NoProcessError(no_process(self.directory))
        return alive

    def view(self, address: Address) -> Process:
        """Return one process's current snapshot; raises UnreachableError."""
        snapshot = document.from_json(self._get(address, "/view?compact=1"))
        if len(snapshot.processes) != 1:
            raise UnreachableError("the answer does not describe exactly one process")
        return snapshot.processes[0]

    def servers(
        self, address: Address, *, linger: float, everyone: bool = False
    ) -> Sequence[AgentReading]:
        """Let a process read its own servers; raises UnreachableError.

        ``everyone``: also the sessions of others, if the agent is new enough.
        """
        query = urlencode({"linger": linger, **({"sessions": 1} if everyone else {})})
        text = self._get(address, f"/servers?{query}", patience_s=2 * PATIENCE_S)
        return document.list_from_json(AgentReading, text, "servers")

    def traces(self, address: Address, seconds: float) -> Sequence[Trace]:
        """Let a process record its pools for ``seconds``; raises UnreachableError."""
        query = urlencode({"seconds": seconds})
        text = self._get(address, f"/trace?{query}", patience_s=seconds + PATIENCE_S)
        return document.list_from_json(Trace, text, "traces")

    def all_traces(
        self, seconds: float
    ) -> tuple[list[tuple[Address, Sequence[Trace]]], tuple[Unreachable, ...]]:
        """Let all processes record at once; also returns the failed processes."""
        addresses = self.agents()
        outcomes = self._calls.run(
            {address: partial(self.traces, address, seconds) for address in addresses},
            seconds + PATIENCE_S,
        )
        return self._by_success(addresses, outcomes)

    def incident_snapshots(self, address: Address) -> tuple[IncidentSnapshot, ...]:
        """Return a process's incident snapshots; raises UnreachableError."""
        try:
            text = self._get(address, "/frozen")
        except _NotFoundError:
            raise UnreachableError(
                "its version of poolwatch is too old to keep incident snapshots"
            ) from None
        return tuple(document.list_from_json(IncidentSnapshot, text, "frozen"))

    def all_incident_snapshots(
        self,
    ) -> tuple[tuple[IncidentSnapshot, ...], tuple[Unreachable, ...]]:
        """Return the incident snapshots of all processes, oldest first.

        Also returns the processes that failed, each with a sentence. Raises what
        agents() raises. Not thread-safe.
        """
        addresses = self.agents()
        outcomes = self._calls.run(
            {
                address: partial(self.incident_snapshots, address)
                for address in addresses
            },
            self._patience_s,
        )
        answers, failed = self._by_success(addresses, outcomes)
        found = [each for _, answer in answers for each in answer]
        return tuple(sorted(found, key=lambda each: each.at)), failed

    @staticmethod
    def _by_success(
        addresses: Sequence[Address], outcomes: Mapping[Hashable, Outcome]
    ) -> tuple[list[tuple[Address, Any]], tuple[Unreachable, ...]]:
        """Separate the answers from the processes that failed."""
        errors = {each: _error_of(outcomes[each]) for each in addresses}
        answers = [(a, outcomes[a].value) for a in addresses if errors[a] is None]
        failed = [Unreachable(a.pid, why) for a, why in errors.items() if why]
        return answers, tuple(failed)

    def _get(
        self, address: Address, target: str, patience_s: float | None = None
    ) -> bytes:
        connection = _UnixConnection(address.path, patience_s or self._patience_s)
        try:
            connection.request("GET", target)
            with connection.getresponse() as response:
                body = response.read(_MAX_MIB * 2**20 + 1)
        except (TimeoutError, BlockingIOError):  # the latter: its queue is full
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
        if len(body) > _MAX_MIB * 2**20:
            raise UnreachableError(f"its answer exceeds {_MAX_MIB} MiB")
        return body


class _NotFoundError(UnreachableError):
    """The agent does not have this path."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("poolwatch", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def _error_of(outcome: Outcome) -> str | None:
    if outcome.ended is None:
        return "it does not answer in time"
    if outcome.error is None or isinstance(outcome.error, PoolwatchError):
        return str(outcome.error) if outcome.error else None
    raise outcome.error


def _listening(address: Address) -> Address | None:
    """Return the address with the process that listens there; None if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue fails at once
        try:
            probe.connect(os.fspath(address.path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError:
            peer = liveness.process_with_socket(address.path, address.pid)
        else:
            peer = liveness.listener(probe)
    return replace(address, peer=peer)


def _without_file(directory: Path) -> Iterator[Address]:
    """Yield the processes that listen in a directory, but whose file is gone."""
    for path in liveness.sockets_without_file(directory):
        address = sockets.address_of(path)
        peer = address and liveness.process_with_socket(path, address.pid)
        if address and peer:
            yield replace(address, peer=peer)


def no_process(directory: Path) -> str:
    """The message for a directory without sockets, with the first steps."""
    return (
        f"no instrumented process found in {directory}\n"
        "add one line to the application: poolwatch.instrument(engine)\n"
        "its socket appears with the first checkout; a process that runs with another "
        "POOLWATCH_DIR is found with --dir DIRECTORY"
    )
