"""Parameter servers as plain objects in the test's process, and what they are asked."""

from threading import Lock

import numpy as np

from pipelines.training.messages import Push, ServerPlan
from pipelines.training.parameter_server import ParameterShard
from tasks.rules import RMSprop, Staircase


class LocalServers:
    """`remote_optimizer.Servers` without Ray: the same objects, one call at a time."""

    def __init__(self, plan):
        self.shards = [ParameterShard(plan, index) for index in range(plan.num_servers)]
        self.lock = Lock()

    def start(self, worker, weights, statistics, windows):
        with self.lock:
            parts = zip(self.shards, weights, statistics, windows, strict=True)
            return [shard.start(worker, w.copy(), t.copy(), window) for shard, w, t, window in parts]

    def pull(self, worker, windows):
        with self.lock:
            return [self._copied(s.pull(worker, window)) for s, window in zip(self.shards, windows, strict=True)]

    def standing(self, worker):
        with self.lock:
            return [shard.standing(worker) for shard in self.shards]

    def push(self, pushes, windows):
        with self.lock:
            replies = [self._copied(shard.push(push)) for shard, push in zip(self.shards, pushes, strict=True)]
        return lambda: replies

    @staticmethod
    def _copied(reply):
        return reply._replace(weights=reply.weights.copy())


def plan(tmp_path, **changes):
    values = {
        "name": "run",
        "num_servers": 1,
        "num_workers": 1,
        "folder": tmp_path,
        "rule": RMSprop(0.9, 0.9, 1.0),
        "learning_rate": Staircase(0.1, 0.9, 3, 0),
        "average_decay": 0.9,
        "total_steps": 100,
        "policy": "none",
        "max_staleness": 2,
        "snapshot_steps": 4,
        "log_steps": 1,
    }
    return ServerPlan(**{**values, **changes})


def started(plan, length=10, index=0, workers=1):
    shard = ParameterShard(plan, index)
    replies = [shard.start(worker, np.zeros(length, np.float32), np.zeros(2, np.float32)) for worker in range(workers)]
    return (shard, *replies)


def push(reply, sequence, gradient=1.0, worker=0, **changes):
    values = {
        "worker": worker,
        "sequence": sequence,
        "incarnation": reply.incarnation,
        "version": reply.version,
        "gradient": np.full(len(reply.weights), gradient, np.float32),
        "before": reply.statistics,
        "after": reply.statistics + 1,
        "samples": 8,
        "metrics": {"loss": 0.5},
    }
    return Push(**{**values, **changes})
