"""MLflow: every training run, evaluation and report as one can compare them in `mlflow ui`. A view, never a source.

Stages say what there is to tell by `begin`, `finish`, `log_evaluation` and `log_report`, which write to files alone
(`spool`) and wait for no server. A thread (`sending`, in `sender`) brings it to MLflow (`delivery`), each thing once;
what did not arrive is kept, and `python -m pipelines.tracking` sends it later. Nowhere else is mlflow imported.

Without MLFLOW_TRACKING_URI the runs go to `mlflow.db` and `mlruns/` in the project's folder, where `mlflow ui` finds
them. Nothing is sent but what a spool holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from pipelines.tracking import sender
from pipelines.tracking.client import BRIEF, QUIET, absence, address, import_mlflow, readable, set_environment
from pipelines.tracking.delivery import deliver
from pipelines.tracking.position import has_news
from pipelines.tracking.spool import PARENT, Data, Model, begin, finish, log_evaluation, log_report
from pipelines.tracking.system import sampler

__all__ = ["PARENT", "Data", "Model", "begin", "finish", "log_evaluation", "log_report", "send", "sending"]


def sending(period: float = 10.0) -> AbstractContextManager[Callable[[Path], None]]:
    """Sends spools from a thread while the block runs, and what is left at its end; yields the function to add one.

    period: seconds between two looks at the spools. Raises nothing: what did not get through is named in one logged
    line, with the command that sends it. A call to the store may take 10 s, or MLFLOW_HTTP_REQUEST_TIMEOUT; the end of
    the block waits for two of them where a server accepts connections and says nothing.
    """
    set_environment({**QUIET, **BRIEF})
    import_mlflow()
    return sender.sending(store(), period, sampler())


def send(spools: Iterable[Path]) -> None:
    """Send these spools now. Raises nothing, as `sending`."""
    set_environment({**QUIET, **BRIEF})
    sender.send(store(), list(spools))


def store() -> sender.Store:
    """The store that the environment names."""
    return sender.Store(lambda spool: has_news(spool, address()), deliver, absence, readable, f"MLflow at {address()}")
