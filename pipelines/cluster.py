"""The Ray cluster that a process works on: the one that RAY_ADDRESS names, or one that is started here for as long.

Ray is imported by the first call that needs it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Ray Train asks its workers how they are every 2 s, and a run's end waits for that question. It bears with one that
# does not answer for 600 s; workers answer while they train, in another thread: 60 s of silence tell that one hangs.
# The preemption watcher (an actor more for each run) does not work with replica groups.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


WAIT = "CLUSTER_WAIT_SECONDS"
log = logging.getLogger(__name__)


def is_named() -> bool:
    """Whether there is a cluster to be used (inside `ray job submit` too)."""
    return bool(os.environ.get("RAY_ADDRESS"))


def use_cluster(*bundles: Mapping[str, float]) -> None:
    """Connect to a Ray cluster, or start one here; ValueError where it does not hold what is wanted.

    bundles: amounts of "CPU" and "GPU", each of which one machine must have. Ray Train itself would wait without end.
    A cluster with an autoscaler is asked for them, and has `CLUSTER_WAIT_SECONDS` (0 where that is not set) to bring
    them. A cluster started here counts as many CPUs as are wanted, even on a machine with fewer; one that an earlier
    run started for less is started anew.
    """
    settings = {**RAY_ENVIRONMENT, **({"RAY_AUTH_MODE": "token"} if is_named() and _has_token() else {})}
    os.environ.update({name: value for name, value in settings.items() if name not in os.environ})
    import ray

    # Ray tells on every start that its clusters are guarded by a token, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    wanted = total(bundles)
    if is_named():
        ray.init(ignore_reinit_error=True, **quiet)
        _wait_for(bundles, wanted)
    else:
        if ray.is_initialized() and ray.cluster_resources().get("CPU", 0) < wanted["CPU"]:
            ray.shutdown()
        if not ray.is_initialized():
            logical = max(os.cpu_count() or 1, math.ceil(wanted["CPU"]))
            ray.init(address="local", num_cpus=logical, include_dashboard=False, **quiet)
    there = resources()
    for name, amount in wanted.items():
        if amount > there[name]:
            raise ValueError(
                f"the run needs {amount:g} {name} and the Ray cluster has {there[name]:g}; lower num_workers, "
                "worker_cpus, worker_gpus or servers in params.yaml, or name a larger cluster in RAY_ADDRESS; "
                f"one with an autoscaler has {WAIT} seconds to grow, {_wait_seconds():g}"
            )


def total(bundles: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The amounts of "CPU" and "GPU" in some bundles."""
    known = [*bundles]
    return {name: sum(bundle.get(name, 0.0) for bundle in known) for name in ("CPU", "GPU")}


def resources() -> dict[str, float]:
    """The amounts of "CPU" and "GPU" in the cluster that this process is connected to."""
    import ray

    return total([ray.cluster_resources()])


def _wait_seconds() -> float:
    text = os.environ.get(WAIT, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{WAIT} is {text!r}; it must be a number of seconds: how long an autoscaler may take")
    return seconds


def _wait_for(bundles: Iterable[Mapping[str, float]], wanted: Mapping[str, float]) -> None:
    """Ask the autoscaler for what is not there, and wait for it as long as the environment says."""
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + _wait_seconds()

    def is_there() -> bool:
        there = resources()
        return all(amount <= there[name] for name, amount in wanted.items())

    if is_there() or time.monotonic() >= deadline:
        return
    log.info("waiting for the cluster to have %s", ", ".join(f"{amount:g} {name}" for name, amount in wanted.items()))
    request_resources(bundles=[{name: amount for name, amount in bundle.items() if amount} for bundle in bundles])
    while not is_there() and time.monotonic() < deadline:
        time.sleep(1.0)
    # What is in use now is kept by being used: a standing request would keep machines for nobody.
    request_resources(bundles=[])


def _has_token() -> bool:
    """Whether there is a token for clusters: `ray start` guards a cluster by it then, but a driver does not show it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    return "RAY_AUTH_TOKEN" in os.environ or path.is_file()


def leave_cluster() -> None:
    """Disconnect from Ray, if this process has connected; stops a cluster that was started here."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
