"""Parameter servers as Ray actors, owned by a Ray Train backend, and the workers' line to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import AuthenticationError
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.worker_group import ReplicaGroup

from pipelines.training.messages import Push, Reply, ServerPlan, Vector
from pipelines.training.served_shard import ServedShard, ServerConnection, connected
from pipelines.training.shared_vectors import Window

# A restarted server is back when its process has started and read its snapshot.
RETURN_SECONDS = 300.0
RETRY_SECONDS = 0.2


class RayServers:
    """`remote_optimizer.Servers` on handles of `ServedShard`, one request to each in flight at once."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self.handles = handles
        self._connections: dict[
            int, ServerConnection | None
        ] = {}  # by a server's place in `handles`; None: there can be none

    @classmethod
    def connect(cls, plan: ServerPlan) -> RayServers:
        """The line to a run's servers, found by their names."""
        return cls([ray.get_actor(plan.actor_name(index)) for index in range(plan.num_servers)])

    def start(
        self, worker: int, weights: Sequence[Vector], statistics: Sequence[Vector], windows: Sequence[Window | None]
    ) -> list[Reply]:
        parts = zip(weights, statistics, windows, strict=True)
        return self._ask("start", [(worker, *part) for part in parts], windows)()

    def pull(self, worker: int, windows: Sequence[Window | None]) -> list[Reply]:
        return self._ask("pull", [(worker, window) for window in windows], windows)()

    def standing(self, worker: int) -> list[Reply]:
        return self._ask("standing", [(worker,)] * len(self.handles), [None] * len(self.handles))()

    def push(self, pushes: Sequence[Push], windows: Sequence[Window | None]) -> Callable[[], list[Reply]]:
        return self._ask("push", [(push,) for push in pushes], windows)

    def _ask(
        self, method: str, arguments: Sequence[tuple[Any, ...]], windows: Sequence[Window | None]
    ) -> Callable[[], list[Reply]]:
        asked = enumerate(zip(arguments, windows, strict=True))
        answers = [self._asked(index, method, values, window) for index, (values, window) in asked]
        return lambda: [answer() for answer in answers]

    def _asked(self, index: int, method: str, values: tuple[Any, ...], window: Window | None) -> Callable[[], Reply]:
        """Ask one server, by a socket for a push whose vectors it sees; returns what waits for the reply."""
        server = self.handles[index]
        if method == "push" and values[0].window is not None and (connection := self._connection(index)):
            with suppress(OSError):  # the server has died; Ray says so too
                connection.send(values[0])
                return partial(self._heard, index, connection, values[0].worker, window)
            del self._connections[index]
        return partial(self._answer, server, method, values, window, server.ask.remote(method, *values))

    def _connection(self, index: int) -> ServerConnection | None:
        if index not in self._connections:
            try:
                address = ray.get(self.handles[index].address.remote())
            except RayActorError:
                return None  # for now
            try:
                self._connections[index] = connected(address)
            except (OSError, EOFError, AuthenticationError):  # a container with a network of its own, for one
                self._connections[index] = None
        return self._connections[index]

    def _heard(self, index: int, connection: ServerConnection, worker: int, window: Window | None) -> Reply:
        """A reply by a server's socket; where the server has died, what `_answer` says then."""
        try:
            reply = connection.recv()
        except (OSError, EOFError):
            del self._connections[index]
            return self._asked(index, "pull", (worker, window), window)()._replace(status="lost")
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _answer(
        self, server: Any, method: str, values: tuple[Any, ...], window: Window | None, reference: Any
    ) -> Reply:
        """A server's reply; where the server has died, its reply to the question put again once it is back.

        A push is never put again: it may or may not have been applied, and was computed on state that is lost.
        In its place the weights are pulled, and the reply says "lost". Raises what the server does, such as
        OSError where its disk is full.
        """
        deadline = time.monotonic() + RETURN_SECONDS
        lost = False
        while True:
            try:
                reply: Reply = ray.get(reference)
                return reply._replace(status="lost") if lost else reply
            except RayTaskError as error:  # its text is a traceback
                raise error.cause from None
            except RayActorError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)
            if method == "push":
                lost, method, values = True, "pull", (values[0].worker, window)
            reference = server.ask.remote(method, *values)


@dataclass
class ParameterServerConfig(TorchConfig):
    """Tells Ray Train to run independent workers around the parameter servers of `plan`.

    extra_workers: functions that join in as tasks of Ray's where there is room for them, each with extra_resources.
    """

    plan: ServerPlan | None = None
    server_cpus: float = 0.0
    extra_workers: tuple[Callable[[], None], ...] = ()
    extra_resources: dict[str, float] = field(default_factory=dict)  # "CPU" and "GPU" of each

    @property
    def backend_cls(self) -> type[Backend]:
        return _ParameterServerBackend


def _extra_worker(work: Callable[[], None]) -> None:
    work()


class _ParameterServerBackend(Backend):
    """Owns the servers. Replica groups of one make Ray Train replace a dead worker alone (Ray 2.60, developer API).

    It restarts all of a group whose size is to change, so that workers who come and go are not of the group. They are
    tasks: what has no room waits in Ray's queue, where an autoscaler sees it, and what dies with its machine is queued
    again.
    """

    has_replica_groups = True

    def __init__(self) -> None:
        self.actors: list[Any] = []
        self.extras: list[Any] = []

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        if isinstance(worker_group, ReplicaGroup):
            return  # one worker is being replaced; the servers have never stopped
        assert isinstance(backend_config, ParameterServerConfig)
        plan = backend_config.plan
        assert plan is not None
        options = {
            "num_cpus": backend_config.server_cpus,
            "max_restarts": -1,  # comes back from its snapshot
            "max_task_retries": 0,  # a push repeated by Ray could be applied twice
            "scheduling_strategy": "SPREAD",
        }
        server: Any = ray.remote(ServedShard)
        self.actors = [
            server.options(name=plan.actor_name(index), **options).remote(plan, index)
            for index in range(plan.num_servers)
        ]
        amounts = backend_config.extra_resources
        extra = {"num_cpus": amounts.get("CPU", 0.0), "num_gpus": amounts.get("GPU", 0.0), "max_retries": -1}
        # Only now: the group's workers have their room.
        self.extras = [ray.remote(_extra_worker).options(**extra).remote(w) for w in backend_config.extra_workers]

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002 - Ray's interface
        if isinstance(worker_group, ReplicaGroup):
            return
        for task in self.extras:
            ray.cancel(task, force=True)
        self.extras = []
        try:
            ray.get([actor.ask.remote("snapshot") for actor in self.actors])
        finally:
            for actor in self.actors:
                ray.kill(actor)
            self.actors = []
