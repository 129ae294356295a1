"""Workers and parameter servers as processes of a simulated clock: each does what the real ones do, in that order.

A worker (`RemoteOptimizer.step`) computes, takes its gradient to the host, serialises a slice for each server in turn,
and waits for all replies; nothing of that overlaps with computing. A server (`ParameterShard`) answers one call at a
time. A slice passes its sender's link and its receiver's as a stream; each of them serves one slice after another.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from pipelines.simulation.costs import Costs
from pipelines.simulation.events import NEVER, Clock, Pool, Process, in_turns

if TYPE_CHECKING:
    from pipelines.training.messages import Policy

WAIT_SECONDS = 0.005  # `pipelines.training.remote_optimizer.WAIT_SECONDS`
QUANTUM = 0.003  # s that Linux lets a process run while others wait: base_slice_ns of its EEVDF scheduler, about
WARM_UP = 4  # rounds before anything is counted


@dataclass(frozen=True)
class Cluster:
    """Who trains, and how long it is looked at.

    policy, max_staleness: as in `ServerPlan`. slowdowns: by what the steps of the first workers are slower. jitter: of
    a step's time, its standard deviation over its mean. cores: all workers and servers share so many, on one machine
    without links; None: they wait for nobody's. rounds: pushes that are counted, for each worker.
    """

    workers: int
    servers: int
    policy: Policy = "none"
    max_staleness: int = 1
    slowdowns: tuple[float, ...] = ()
    jitter: float = 0.05
    cores: int | None = None
    rounds: int = 10
    seed: int = 0


class Outcome(NamedTuple):
    """Rates and means of the counted time; pushes and pulls are of the whole simulation, from its first to its last.

    images_per_second: of applied pushes. staleness: their mean. server_busy: share of the time that a server computes.
    link_busy: share that a server's link is taken, in the direction that is taken longer. by_worker: counted rounds.
    """

    images_per_second: float
    staleness: float
    server_busy: float
    link_busy: float
    pushes: int
    pulls: int
    dropped: int
    by_worker: tuple[int, ...]


class Call(NamedTuple):
    """What a worker asks all servers."""

    pushes: bool
    pulls: bool


PUSH, PULL, STANDING = Call(pushes=True, pulls=True), Call(pushes=False, pulls=True), Call(pushes=False, pulls=False)


class _Worker:
    """The state of one worker: its link, the versions that it has of each slice, and the replies it waits for."""

    def __init__(self, index: int, num_servers: int) -> None:
        self.index = index
        self.process: Process
        self.out, self.into = Pool(), Pool()
        self.versions = [0] * num_servers
        self.missing = 0
        self.lead = 0


class _Server:
    """The state of one server: its link, what has arrived, and what it has counted."""

    def __init__(self, index: int, num_workers: int) -> None:
        self.index = index
        self.process: Process
        self.out, self.into = Pool(), Pool()
        self.arrived: deque[tuple[_Worker, Call]] = deque()
        self.idle = False
        self.version = 0
        self.sequences = [0] * num_workers
        self.staleness = 0
        self.busy = 0.0
        self.dropped = 0

    @property
    def counts(self) -> tuple[int, int, float, float, float]:
        """Updates, their staleness together, and the seconds for which the process and the link were taken."""
        return self.version, self.staleness, self.busy, self.into.busy, self.out.busy


class _Simulation:
    """One cluster from its start until every worker has ended the round in which the last update was made."""

    def __init__(self, costs: Costs, cluster: Cluster) -> None:
        self.costs, self.cluster = costs, cluster
        self.random = Random(cluster.seed)  # noqa: S311 - nothing secret
        self.clock = Clock()
        self.cores = None if cluster.cores is None else Pool(cluster.cores)
        self.workers = [_Worker(index, cluster.servers) for index in range(cluster.workers)]
        self.servers = [_Server(index, cluster.workers) for index in range(cluster.servers)]
        self.pushes = self.pulls = 0
        self.snapshots: list[tuple[float, list[tuple[int, int, float, float, float]], list[int]]] = []
        for server in self.servers:
            server.process = self._serve(server)
            self.clock.start(server.process)
        for worker in self.workers:
            worker.process = self._train(worker)
            self.clock.start(worker.process)

    @property
    def ended(self) -> bool:
        return len(self.snapshots) == 2

    def run(self) -> Outcome:
        self.clock.run()
        (began, before, sequences), (ended, after, later) = self.snapshots
        seconds = ended - began
        changes = [[b - a for a, b in zip(*both, strict=True)] for both in zip(before, after, strict=True)]
        updates, staleness, busy, into, out = (sum(column) for column in zip(*changes, strict=True))
        each = seconds * self.cluster.servers
        return Outcome(
            images_per_second=changes[0][0] * self.costs.batch_size / seconds,
            staleness=staleness / updates,
            server_busy=busy / each,
            link_busy=max(into, out) / each,
            pushes=self.pushes,
            pulls=self.pulls,
            dropped=sum(server.dropped for server in self.servers),
            by_worker=tuple(b - a for a, b in zip(sequences, later, strict=True)),
        )

    def _train(self, worker: _Worker) -> Process:
        yield self.random.random() * self.costs.step  # workers do not start at the same moment
        while not self.ended:
            yield from self._work(self._step_seconds(worker))
            yield from self._ask(worker, PUSH)
            if self._must_wait(worker):
                yield from self._ask(worker, STANDING)
                while self._must_wait(worker):
                    yield self.clock.now + WAIT_SECONDS
                    yield from self._ask(worker, STANDING)
                yield from self._ask(worker, PULL)

    def _step_seconds(self, worker: _Worker) -> float:
        slowdowns, jitter = self.cluster.slowdowns, self.cluster.jitter
        slowdown = slowdowns[worker.index] if worker.index < len(slowdowns) else 1.0
        varied = self.random.gammavariate(jitter**-2, jitter**2) if jitter else 1.0  # of mean 1, never below 0
        return self.costs.step * slowdown * varied

    def _must_wait(self, worker: _Worker) -> bool:
        return self.cluster.policy == "wait" and not self.ended and worker.lead > self.cluster.max_staleness

    def _ask(self, worker: _Worker, call: Call) -> Process:
        """Send a call to all servers, one after another, and wait for all replies."""
        costs, share = self.costs, 1 / self.cluster.servers
        if call.pushes:
            yield from self._work(costs.collect)
        worker.missing, worker.lead = self.cluster.servers, 0
        for server in self.servers:
            yield from self._work(costs.request + (costs.serialise * share if call.pushes else 0.0))
            self.clock.start(self._deliver(worker, server, call))
        while worker.missing:
            yield NEVER
        if call.pulls:
            yield from self._work(costs.load)

    def _deliver(self, worker: _Worker, server: _Server, call: Call) -> Process:
        self.pushes += call.pushes
        yield from self._send(worker.out, server.into, self.costs.push_bytes if call.pushes else 0.0)
        server.arrived.append((worker, call))
        if server.idle:
            server.idle = False
            self.clock.start(server.process)

    def _serve(self, server: _Server) -> Process:
        costs, share = self.costs, 1 / self.cluster.servers
        while True:
            while server.arrived:
                worker, call = server.arrived.popleft()
                staleness = server.version - worker.versions[server.index]
                refused = self.cluster.policy == "drop" and staleness > self.cluster.max_staleness
                applies = call.pushes and not refused
                seconds = costs.serve + share * (costs.apply * applies + costs.answer * call.pulls)
                yield from self._work(seconds)
                server.busy += seconds
                if call.pushes:
                    self._account(server, worker, staleness if applies else None)
                self.clock.start(self._reply(worker, server, call, server.version, self._lead(server, worker)))
            server.idle = True
            yield NEVER

    def _account(self, server: _Server, worker: _Worker, staleness: int | None) -> None:
        """Count a push; None: it was dropped. The first server's count says when counting begins and ends."""
        server.sequences[worker.index] += 1
        if staleness is None:
            server.dropped += 1
            return
        server.version += 1
        server.staleness += staleness
        begin, end = (self.cluster.workers * rounds for rounds in (WARM_UP, WARM_UP + self.cluster.rounds))
        if server.index == 0 and server.version in (begin, end):
            now = self.clock.now, [other.counts for other in self.servers], list(server.sequences)
            self.snapshots.append(now)

    def _lead(self, server: _Server, worker: _Worker) -> int:
        if self.cluster.policy != "wait":
            return 0
        return server.sequences[worker.index] - min(server.sequences)

    def _reply(self, worker: _Worker, server: _Server, call: Call, version: int, lead: int) -> Process:
        yield from self._send(server.out, worker.into, self.costs.pull_bytes if call.pulls else 0.0)
        if call.pulls:
            worker.versions[server.index] = version
        self.pulls += call.pulls
        worker.lead = max(worker.lead, lead)
        worker.missing -= 1
        if not worker.missing:
            self.clock.start(worker.process)

    def _send(self, sender: Pool, receiver: Pool, of_all: float) -> Process:
        """A slice of something that has `of_all` bytes, from the moment it is ready until it is there."""
        seconds = 0.0 if self.cores is not None else of_all / self.cluster.servers / self.costs.link_bytes
        if seconds:
            start = sender.take(self.clock.now, seconds) - seconds
            yield max(self.clock.now, start)
            yield receiver.take(self.clock.now, seconds) + self.costs.latency
        else:
            yield self.clock.now + self.costs.latency

    def _work(self, seconds: float) -> Process:
        """Compute for so long, on a core of one's own or in turns with all others."""
        if self.cores is None:
            yield self.clock.now + seconds
        else:
            yield from in_turns(self.cores, self.clock, seconds, QUANTUM)


def simulate(costs: Costs, cluster: Cluster) -> Outcome:
    """What a cluster makes of such steps and exchanges; the same arguments give the same outcome."""
    return _Simulation(costs, cluster).run()
