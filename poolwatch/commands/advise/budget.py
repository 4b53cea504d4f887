"""How many connections each service may have, so that all fit into one server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from poolwatch.diagnosis.pool_options import options_of
from poolwatch.model import Process
from poolwatch.sidecar.fleet import KnownServer, PoolOnServer, known_servers
from poolwatch.sidecar.history.totals import PoolTotal
from poolwatch.text.format import duration, fit, one_line, plural, width

_MINUTE_S = 60
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class ServiceBudget:
    """What the processes of one service may have, for one of their pools."""

    service: str
    pool: str
    processes: int
    """The most at one time."""
    limit: int | None
    """Connections that each process may open today; None if unlimited or unknown."""
    out_mean: float
    """Connections out in one process, on average."""
    peak: int
    """The most connections out in one process."""
    wanted: int
    """The most connections out and requests waiting in one process."""
    timeouts: int
    leaked: int
    unseen_s: float
    """From its last minute to the end of the history."""
    proposed: int
    """Connections for each process."""
    line: str | None
    """The configuration line; None if there is nothing to change."""


@dataclass(frozen=True, slots=True)
class ServerBudget:
    """The connections of one server, divided among the services that use it."""

    server: str
    """Its address."""
    budget: int
    max_connections: int | None
    reserved: int | None
    before: int
    """Connections that all limited pools can open today."""
    unlimited: int
    """How many pools have no limit."""
    after: int
    """Connections that all pools can open with the proposed limits."""
    most_out: int
    """The most that were out at once, at most."""
    fits: bool
    """No process gets less than it has used."""
    advice: tuple[str, ...]
    services: tuple[ServiceBudget, ...]


class _Service(NamedTuple):
    """The pools of one name, of all processes of one service."""

    name: str
    pool: str
    kind: str
    totals: list[PoolTotal]

    @property
    def newest(self) -> PoolTotal:
        return max(self.totals, key=lambda each: each.last)

    @property
    def processes(self) -> int:
        return _at_once((each.first, each.last) for each in self.totals)

    @property
    def peak(self) -> int:
        return max(each.out_max for each in self.totals)

    @property
    def wanted(self) -> int:
        return max(each.wanted_max for each in self.totals)

    @property
    def leaked(self) -> int:
        return sum(each.leaked for each in self.totals)

    @property
    def most(self) -> int:
        """The most connections that are worth giving to a process."""
        limit = self.newest.limit
        if limit is None:
            return max(1, 2 * self.wanted)
        # a larger pool is no remedy for a leak
        return limit if self.leaked else max(limit, self.wanted)


def server_budgets(
    totals: Sequence[PoolTotal],
    processes: Sequence[Process],
    most_out: Mapping[str | None, int],
    budget: int | None,
) -> tuple[list[ServerBudget], list[str]]:
    """Divide the connections of each server.

    ``processes`` say which servers there are; ``most_out`` is by URL. Without a budget,
    a server has max_connections less the reserved ones. Returns also the addresses of
    the servers of which that is not known.
    """
    found, unknown = [], []
    for server in _servers(totals, processes):
        own = [totals[each.number] for each in server.pools]
        status = server.status
        limit = budget
        if limit is None and status is not None and status.max_connections is not None:
            limit = status.max_connections - (status.reserved or 0)
        if limit is None:
            unknown.append(_address(server))
            continue
        out = sum(most_out.get(url, 0) for url in {each.url for each in own})
        found.append(_divided(server, _services(own, processes), limit, out))
    return found, unknown


def _servers(
    totals: Sequence[PoolTotal], processes: Sequence[Process]
) -> list[KnownServer]:
    statuses = {
        (process.host, process.pid, pool): status
        for process in processes
        for status in process.servers
        for pool in status.pools
    }
    return known_servers(
        [
            PoolOnServer(
                number,
                total.host,
                total.pool_id,
                total.url,
                statuses.get((total.host, total.pid, total.pool_id)),
            )
            for number, total in enumerate(totals)
        ]
    )


def _address(server: KnownServer) -> str:
    if server.status is not None and server.status.address:
        return server.status.address
    host, name = server.pools[0].name or ("", "?")
    return f"{name} of {host}" if host else name


def _services(
    totals: Iterable[PoolTotal], processes: Sequence[Process]
) -> list[_Service]:
    kinds = {
        (process.host, process.pid, pool.id): pool.extends
        for process in processes
        for pool in process.pools
    }
    groups: dict[tuple[str, str], list[PoolTotal]] = defaultdict(list)
    for each in totals:
        groups[each.service, each.pool].append(each)
    found = []
    for (name, pool), group in sorted(groups.items()):
        service = _Service(name, pool, "", group)
        newest = service.newest
        extends = kinds.get((newest.host, newest.pid, newest.pool_id))
        found.append(service._replace(kind=extends or newest.kind))
    return found


def _at_once(spans: Iterable[tuple[int, int]]) -> int:
    """The most spans at one time. One that ends in a minute makes room in it."""
    changes: list[tuple[int, int]] = []
    for first, last in spans:
        changes += [(first, 1), (max(last, first + _MINUTE_S), -1)]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def _divided(
    server: KnownServer, services: Sequence[_Service], budget: int, most_out: int
) -> ServerBudget:
    status = server.status
    shares = _shares(services, budget)
    after = sum(
        each.processes * share for each, share in zip(services, shares, strict=True)
    )
    end = max(each.newest.last for each in services)
    limits = [(each.processes, each.newest.limit) for each in services]
    found = ServerBudget(
        server=_address(server),
        budget=budget,
        max_connections=status.max_connections if status else None,
        reserved=status.reserved if status else None,
        before=sum(count * (limit or 0) for count, limit in limits),
        unlimited=sum(count for count, limit in limits if limit is None),
        after=after,
        most_out=most_out,
        fits=after <= budget
        and all(s >= each.peak for each, s in zip(services, shares, strict=True)),
        advice=(),
        services=tuple(
            _service(each, share, end)
            for each, share in zip(services, shares, strict=True)
        ),
    )
    return replace(found, advice=tuple(_advice(found)))


def _shares(services: Sequence[_Service], budget: int) -> list[int]:
    """Connections for each process: one, and what is left in proportion to its peak."""
    shares = [1] * len(services)
    counts = [each.processes for each in services]
    peaks = [max(1, each.peak) for each in services]
    most = [each.most for each in services]
    left = budget - sum(counts)
    while True:
        growing = [
            n for n, share in enumerate(shares) if share < most[n] and counts[n] <= left
        ]
        if not growing:
            return shares
        least = min(growing, key=lambda n: (shares[n] / peaks[n], counts[n]))
        shares[least] += 1
        left -= counts[least]


def _service(service: _Service, share: int, end: int) -> ServiceBudget:
    newest = service.newest
    return ServiceBudget(
        service=service.name,
        pool=service.pool,
        processes=service.processes,
        limit=newest.limit,
        out_mean=sum(each.out_mean for each in service.totals) / len(service.totals),
        peak=service.peak,
        wanted=service.wanted,
        timeouts=sum(each.timeouts for each in service.totals),
        leaked=service.leaked,
        unseen_s=float(end - newest.last),
        proposed=share,
        line=None if newest.limit == share else _line(service, share),
    )


def _line(service: _Service, share: int) -> str:
    """The configuration line of a pool with so many connections."""
    options = options_of(service.kind)
    if options.size == "pool_size":
        kept = min(share, max(1, service.peak))
        return options.line(f"pool_size={kept}, max_overflow={share - kept}")
    # size is the least that such a pool keeps, if it has an option for that
    has_least = (options.keep_options or "").startswith("min_size")
    least = has_least and (service.newest.size or 0) > share
    return options.line(f"min_size={share}, " * least + f"{options.size}={share}")


def _advice(found: ServerBudget) -> Iterator[str]:
    """What to do besides, one sentence or two each."""
    for each in found.services:
        if each.leaked:
            yield (
                f"{each.service} has leaked {plural(each.leaked, 'connection')} of "
                f"pool {each.pool!r}: repair that first; a larger pool does not help"
            )
        if each.unseen_s > _DAY_S:
            yield (
                f"{each.service} has not run for {duration(each.unseen_s)}: its "
                f"{each.processes * each.proposed} connections are kept for it"
            )
        if each.proposed < each.peak:
            yield (
                f"{each.service} had {each.peak} of pool {each.pool!r} out at once in "
                f"one process, and {each.proposed} fit: requests will wait"
            )
    if found.fits:
        return
    if found.after > found.budget:
        yield (
            f"one connection for each pool of each process makes {found.after}, more "
            f"than the budget of {found.budget}: run fewer processes"
        )
    if found.most_out <= found.budget:
        yield (
            f"no more than {found.most_out} were out at once over all processes: a "
            "pooler such as PgBouncer in transaction mode shares "
            f"{found.budget} connections among them"
        )
    else:
        yield (
            f"up to {found.most_out} were out at once over all processes, which no "
            f"pooler fits into {found.budget}: hold connections for a shorter time "
            "(poolwatch ps --sites names the lines that hold most), or raise "
            "max_connections"
        )


# -- as text -----------------------------------------------------------------------

_HEAD = ("SERVICE", "POOL", "PROCESSES", "LIMIT", "MEAN", "PEAK", "WANTED", "PROPOSED")


def lines(found: ServerBudget) -> Iterator[str]:
    """The lines of one server: a table, what to change, and what to do besides."""
    if found.max_connections is None:
        why = ""
    else:
        reserved = found.reserved or 0
        why = f" (max_connections {found.max_connections}, {reserved} reserved)"
    yield one_line(
        f"PostgreSQL at {found.server}: a budget of "
        f"{plural(found.budget, 'connection')}{why}"
    )
    yield from _table([_HEAD, *map(_row, found.services)])
    endless = f", and {plural(found.unlimited, 'pool')} without a limit"
    yield "  " + one_line(
        f"all pools together can open {found.before}"
        f"{endless if found.unlimited else ''}; with these limits {found.after}: "
        f"{'within the budget' if found.fits else 'does not fit'}"
    )
    for service in found.services:
        if service.line is not None:
            yield "  " + one_line(f"* {service.service}: {service.line}")
    for each in found.advice:
        yield "  " + one_line(f"* {each}")


def _row(service: ServiceBudget) -> tuple[str, ...]:
    limit = "none" if service.limit is None else str(service.limit)
    return (
        one_line(service.service, 32),
        one_line(service.pool, 32),
        str(service.processes),
        limit,
        f"{service.out_mean:.1f}",
        str(service.peak),
        str(service.wanted),
        str(service.proposed),
    )


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Two columns of words, then numbers."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            fit(cell, cells) if n < 2 else cell.rjust(cells)
            for n, (cell, cells) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()
