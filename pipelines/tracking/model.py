"""A run's model as MLflow keeps it: weights, the values that its net is built from, code, signature, input example.

`mlflow.pytorch.log_model` exports, pickles and runs the net (40 s for each one, measured on two cores); this writes a
few small files beside the weights.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.tracking.spool import WEIGHTS, Record

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PIPELINES = Path(__file__).parents[1]
CODE = (PIPELINES.parent / "tasks", PIPELINES / "tracking" / "model_flavor.py")
PACKAGES = ("torch", "torchvision", "numpy")  # what that code imports


def send_model(client: MlflowClient, spool: Path, record: Record, run_id: str, experiment_id: str) -> None:
    """Make the run's model the output of its MLflow run, unless it is; the spool's weights are dropped after that.

    A store that is told of the run again, later, does without: the weights are not kept twice for ever.
    """
    from mlflow.entities import LoggedModelOutput

    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    if not found and not (spool / WEIGHTS).exists():
        return
    model = found[0] if found else client.create_logged_model(experiment_id, record.name, run_id)
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            _save(folder, spool / WEIGHTS, record.model or {}, run_id, model.model_id)
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
    if model_of(client, run_id) is None:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    (spool / WEIGHTS).unlink(missing_ok=True)


def model_of(client: MlflowClient, run_id: str) -> str | None:
    """The id of the run's model; None where it has none."""
    outputs = client.get_run(run_id).outputs
    models = outputs.model_outputs if outputs else []
    return models[0].model_id if models else None


def _save(folder: Path, weights: Path, model: dict[str, Any], run_id: str, model_id: str) -> None:
    """Write the model's folder: MLmodel, weights, code, example.

    In: (N, S, S, 3) uint8 images. Out: float32, (N, num_classes), or of a detector (N, max_detections, 6), rows of x1,
    y1, x2, y2 in [0, 1], score and label. The weights are copied here and again on their way.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    image = (model["input_size"], model["input_size"], 3)
    inputs = TensorSpec(np.dtype("uint8"), (-1, *image))
    net = model["net"]
    predicted = (net["max_detections"], 6) if model["task"] == "object_detection" else (net["num_classes"],)
    outputs = TensorSpec(np.dtype("float32"), (-1, *predicted))
    mlflow.pyfunc.save_model(
        folder,
        loader_module="model_flavor",
        data_path=str(weights),
        code_paths=[str(path) for path in CODE],
        model_config={"task": model["task"], "net": net},
        signature=ModelSignature(Schema([inputs]), Schema([outputs])),
        input_example=np.zeros((1, *image), np.uint8),
        pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in PACKAGES],
        mlflow_model=Model(run_id=run_id, model_id=model_id),
    )
