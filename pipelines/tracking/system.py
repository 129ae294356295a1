"""System metrics of this machine, as `mlflow.system_metrics` measures them, into the spools of the runs that train."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from pipelines.tracking.spool import RUNNING, SYSTEM, read_record
from pipelines.training.curve import read_curve


def sampler() -> Callable[[Iterable[Path]], None]:
    """A function that appends one row of what has been measured since its last call to each spool that is RUNNING.

    MLflow's own monitor thread would send the rows itself, and stop at the first one that does not get through.
    """
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(ImportError, RuntimeError):  # no GPU here, or no nvidia-ml-py to ask it
        monitors.append(GPUMonitor())

    def sample(spools: Iterable[Path]) -> None:
        values = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values.update({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()})
            monitor.clear_metrics()
        for spool in spools:
            record, path = read_record(spool), spool / SYSTEM
            if record is not None and record.status == RUNNING:
                row = {"step": len(read_curve(path)), "time": time.time(), **values}
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")

    return sample
