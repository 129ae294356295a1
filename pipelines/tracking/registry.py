"""MLflow's registry: `python -m pipelines.tracking.registry <export>` registers what `pipelines.choose` has exported.

The model that the run left in MLflow becomes a version of the registered model `<table>-<scale>`, which is also the
name of its experiment, and the alias `chosen` points to it; then `mlflow.pyfunc.load_model` takes
`models:/imagenet-sample@chosen`. What is registered already is not registered again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import paths, tracking
from pipelines.command import one_line_errors
from pipelines.files import link, read_json
from pipelines.tracking.client import BRIEF, QUIET, absence, address, connect, readable, set_environment
from pipelines.tracking.model import model_of, send_model
from pipelines.tracking.spool import WEIGHTS, read_record
from pipelines.training import rows

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)
ALIAS = "chosen"
CARD = "card.json"
COMMAND = "python -m pipelines.tracking.registry"


def register(folder: Path) -> bool:
    """Register the run of an export and say so; returns whether that was done.

    Raises nothing but ValueError for a folder that is no export: what MLflow lacks, or that it is away, is told in one
    line, with the command that does it later.
    """
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder / CARD} does not exist; name a folder that python -m pipelines.choose --export made")
    card = read_json(folder / CARD)
    set_environment({**QUIET, **BRIEF})
    try:
        why = absence() or _register(card)
    except Exception as error:  # noqa: BLE001 - MLflow is a view: an export is whole without it
        why = readable(error)
    if why:
        log.warning("not registered, MLflow at %s: %s; register it later: %s %s", address(), why, COMMAND, folder)
    return not why


def _register(card: dict[str, Any]) -> str:
    """Why a run cannot be registered; empty where it is."""
    tracking.send([paths.spool(card["scale"], card["run"], card["fingerprint"])])
    client, name = connect(), f"{card['table']}-{card['scale']}"
    run_id = _run_of(client, name, card["fingerprint"])
    if run_id is None:
        return f"experiment {name} has no finished run of {card['run']} with fingerprint {card['fingerprint']}"
    model_id = model_of(client, run_id) or _sent_again(client, card, run_id)
    if model_id is None:
        return f"run {run_id} has no model, and its weights are not at hand"
    version = _version(client, name, run_id, model_id, card)
    client.set_registered_model_alias(name, ALIAS, version)
    log.info("MLflow at %s: %s is version %s of %s, alias %s", address(), card["run"], version, name, ALIAS)
    return ""


def _run_of(client: MlflowClient, experiment: str, fingerprint: str) -> str | None:
    """The newest finished MLflow run of a fingerprint, wherever it was trained."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    wanted = f"tags.fingerprint = '{fingerprint}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([found.experiment_id], wanted, order_by=["attributes.start_time DESC"], max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _sent_again(client: MlflowClient, card: dict[str, Any], run_id: str) -> str | None:
    """The model of a run that was told to this store after another had got the weights: made of the finished row's."""
    spool = paths.spool(card["scale"], card["run"], card["fingerprint"])
    row = paths.results(card["scale"], card["table"]) / "train" / card["run"]
    record, finished = read_record(spool), rows.read_record(row)
    if record is None or finished is None or finished["fingerprint"] != card["fingerprint"]:
        return None
    link(row / WEIGHTS, spool / WEIGHTS)
    send_model(client, spool, record, run_id, client.get_run(run_id).info.experiment_id)
    return model_of(client, run_id)


def _version(client: MlflowClient, name: str, run_id: str, model_id: str, card: dict[str, Any]) -> str:
    """The version of a registered model that is this model; made where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [version for version in client.search_model_versions(f"name = '{name}'") if version.run_id == run_id]
    if known:
        return str(known[0].version)
    metric, result = card["metric"], card["metrics_json"]
    values = {"run": card["run"], metric: result[metric], **{key: result[key] for key in ("mult_adds", "parameters")}}
    values |= {f"{metric}_{facts['precision']}": facts["metrics"][metric] for facts in card["models"].values()}
    tags = {key: str(value) for key, value in values.items()}
    source = client.get_logged_model(model_id).artifact_location  # of `models:/<id>` a database asks the global store
    made = client.create_model_version(name, source, run_id, tags=tags, model_id=model_id)
    return str(made.version)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", type=Path, help="the folder of an exported run")
    folder = parser.parse_args(argv).export
    with one_line_errors():
        if not register(folder):
            sys.exit(1)


if __name__ == "__main__":
    main()
