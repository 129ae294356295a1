"""The Ray cluster that a process works on: the one that RAY_ADDRESS names, or one that is started here for as long.

Ray is imported by the first call that needs it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

# Ray Train asks its workers how they are every 2 s, and a run's end waits for that question. The preemption watcher
# (an actor more for each run) does not work with replica groups.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def is_named() -> bool:
    """Whether there is a cluster to be used (inside `ray job submit` too)."""
    return bool(os.environ.get("RAY_ADDRESS"))


def use_cluster(wanted: dict[str, float]) -> None:
    """Connect to a Ray cluster, or start one here; ValueError where it does not hold what is wanted.

    wanted: amounts of "CPU" and "GPU". Ray Train itself would wait without end. What an autoscaler could add is not
    counted. A cluster started here counts as many CPUs as are wanted, even on a machine with
    fewer; one that an earlier run started for less is started anew.
    """
    settings = {**RAY_ENVIRONMENT, **({"RAY_AUTH_MODE": "token"} if is_named() and _has_token() else {})}
    os.environ.update({name: value for name, value in settings.items() if name not in os.environ})
    import ray

    # Ray tells on every start that its clusters are guarded by a token, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if is_named():
        ray.init(ignore_reinit_error=True, **quiet)
    else:
        if ray.is_initialized() and ray.cluster_resources().get("CPU", 0) < wanted["CPU"]:
            ray.shutdown()
        if not ray.is_initialized():
            logical = max(os.cpu_count() or 1, math.ceil(wanted["CPU"]))
            ray.init(address="local", num_cpus=logical, include_dashboard=False, **quiet)
    there = ray.cluster_resources()
    for name, amount in wanted.items():
        if amount > there.get(name, 0.0):
            raise ValueError(
                f"the run needs {amount:g} {name} and the Ray cluster has {there.get(name, 0.0):g}; lower num_workers, "
                "worker_cpus, worker_gpus or servers in params.yaml, or name a larger cluster in RAY_ADDRESS"
            )


def _has_token() -> bool:
    """Whether there is a token for clusters: `ray start` guards a cluster by it then, but a driver does not show it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    return "RAY_AUTH_TOKEN" in os.environ or path.is_file()


def leave_cluster() -> None:
    """Disconnect from Ray, if this process has connected; stops a cluster that was started here."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
