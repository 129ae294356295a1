"""MLflow's client, for the store that the environment names, with settings that suit a sender beside a training."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

QUIET = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
# By default a call to a server that is away takes minutes to fail; beside a training, the next look is the retry.
BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}  # of a command that somebody waits for: some 14 s


def set_environment(defaults: Mapping[str, str]) -> None:
    """Set what the user has not set: MLflow reads its settings from the environment."""
    os.environ.update({name: value for name, value in defaults.items() if name not in os.environ})


def store_uri() -> str:
    """The MLflow store: MLFLOW_TRACKING_URI, by default a database in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def address() -> str:
    """The store's URI without the password that it may hold."""
    return _without_password(store_uri()).partition("?")[0]


def readable(error: BaseException) -> str:
    """What lies at the bottom of an error that MLflow raised, in one line: `ConnectionRefusedError: ...`."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {_without_password(text):.300}"


def _without_password(text: str) -> str:
    user = urlsplit(store_uri()).netloc.rpartition("@")[0]
    return text.replace(f"{user}@", "") if user else text


def connect() -> MlflowClient:
    """A client of the store; makes the tables of a new database."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # else it tells of every step
    from mlflow.tracking import MlflowClient

    return MlflowClient(store_uri())


def absence() -> str:
    """Why the store cannot be used; empty where it can."""
    try:
        connect().search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001  whatever it is, nothing can be sent now
        return readable(error)
    return ""


def import_mlflow() -> None:
    """Import what a thread will use before it starts: two threads that import at once may see half a module."""
    import mlflow.pyfunc
    import mlflow.tracking

    if not store_uri().startswith("http"):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
