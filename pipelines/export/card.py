"""What lies beside an exported model: what goes in, what comes out, what it reaches and what it was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from pipelines.tables import METRICS, Result
from pipelines.training.run import Run

CARD, CARD_TEXT, INPUT_FILE, LABELS = "card.json", "card.md", "input.json", "labels.txt"
MODELS = {"model.onnx": "float32", "model_int8.onnx": "int8"}
PACKAGES = ("torch", "onnx", "onnxruntime")


class Output(NamedTuple):
    """What a task's nets say. then: what makes predictions of it. labels: what a line of labels.txt is; "": no file."""

    name: str
    then: str
    labels: str


_CLASSES = Output("logits", "softmax over the last axis: probabilities", "a class")
OUTPUTS = {  # by task; what is not here is not exported
    "imagenet": _CLASSES,
    "stanford_dogs": _CLASSES,
    "geolocation": _CLASSES._replace(labels="the S2 token of a cell of the Earth"),
    "face_attributes": Output("logits", "sigmoid: the probability of each attribute", "an attribute"),
    "face_embedding": Output("embedding", "division by its length: faces of one person are near each other", ""),
}
# Tasks whose models say something about people.
_PEOPLE = "Not to be used to recognise, track or judge people: those in its data were not asked."
_PLACES = "Not to be used to find out where a person is or was from their photos."
LIMITS = {"geolocation": _PLACES, "face_attributes": _PEOPLE, "face_embedding": _PEOPLE}


def input_description(run: Run, num_outputs: int) -> dict[str, Any]:
    """What the graphs take and give, and how an image becomes what they take."""
    augment, output = run.augment, OUTPUTS[run.task]
    resize = "bilinear with half-pixel centres, " + ("antialiased" if augment.antialias else "not antialiased")
    return {
        "input": {
            "name": "images",
            "type": "uint8",
            "layout": "NHWC",
            "shape": ["batch", run.input_size, run.input_size, 3],
            "channels": "RGB",
        },
        "from_an_image": {
            "crop": {"central_fraction_of_each_side": augment.central_fraction},
            "resize": {"to": [run.input_size, run.input_size], "keeps_aspect": False, "how": resize},
        },
        "normalisation": {"where": "in the graph", "scale": 1 / 127.5, "mean": 127.5, "gives": [-1, 1]},
        "output": {
            "name": output.name,
            "type": "float32",
            "shape": ["batch", num_outputs],
            "then": output.then,
            "labels": LABELS if output.labels else None,
        },
    }


def labels_text(task: str, classes: Sequence[str]) -> str | None:
    """One name a line, in the order of the outputs; None where outputs have no names."""
    if not OUTPUTS[task].labels:
        return None
    assert not any("\n" in name for name in classes), "a class's name is of several lines"
    return "".join(f"{name}\n" for name in classes)


def model_card(
    *,
    table: str,
    scale: str,
    run: Run,
    record: Mapping[str, Any],
    result: Result,
    as_trained: Mapping[str, int],
    models: Mapping[str, Mapping[str, Any]],
    processor: str,
) -> dict[str, Any]:
    """Everything that is known of an export.

    result: what metrics.json says of the run. as_trained: Mult-Adds and parameters at the input size and with the
    outputs that the graphs have, where result's are those of the paper's net. models: by file name.
    """
    return {
        "run": run.name,
        "table": table,
        "scale": scale,
        "task": run.task,
        "net": {"name": run.net, "width": run.width, "input_size": run.input_size, "outputs": record["num_outputs"]},
        "as_trained": dict(as_trained),
        "fingerprint": record["fingerprint"],
        "commit": record.get("commit"),
        "data": {"dataset": result["dataset"], "digest": record["data_digest"]},
        "test_data": {key: result[f"test_{key}"] for key in ("dataset", "split", "digest")},
        "metric": next(key for key in METRICS if key in result),
        "models": {name: dict(facts) for name, facts in models.items()},
        "metrics_json": dict(result),
        "processor": processor,
        "versions": {package: version(package) for package in PACKAGES},
    }


def model_facts(content: bytes, precision: str, metrics: Mapping[str, Any], latency: Any) -> dict[str, Any]:
    """What a card says of one graph."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"precision": precision, "bytes": len(content), "digest": digest, "metrics": metrics, "latency": latency}


def card_text(card: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    """The card for people, as Markdown."""
    metric, result, size = card["metric"], card["metrics_json"], card["net"]["input_size"]
    test, output = card["test_data"], description["output"]
    rows = [
        f"| {name} | {facts['precision']} | {facts['metrics'][metric]:.2%} | {facts['bytes'] / 1e6:.2f} MB "
        f"| {facts['latency']['median_ms']:.3g} ms ({facts['latency']['p10_ms']:.3g} to "
        f"{facts['latency']['p90_ms']:.3g}) |"
        for name, facts in card["models"].items()
    ]
    threads = next(iter(card["models"].values()))["latency"]["threads"]
    named = f"; {LABELS} names the outputs in order" if output["labels"] else ""
    limits = [LIMITS[card["task"]]] if card["task"] in LIMITS else []
    return "\n".join(
        [
            f"# {card['run']}",
            "",
            f"{card['net']['name']}, width {card['net']['width']:g}, {size} px, for {card['task']}: a run of table "
            f"{card['table']} at {card['scale']} scale, trained on {card['data']['dataset']}.",
            "",
            f"| file | precision | {METRICS[metric]} | size | one image |",
            "| --- | --- | ---: | ---: | ---: |",
            *rows,
            "",
            f"Accuracies are of {result['eval_samples']:,} images of {test['dataset']} ({test['split']}), by ONNX "
            f"Runtime; PyTorch's was {result[metric]:.2%}. One image: median and middle 80 % of passes on "
            f"{card['processor']}, threads: {threads}.",
            "",
            f"{card['as_trained']['mult_adds']:,} Mult-Adds and {card['as_trained']['parameters']:,} parameters; the "
            f"paper's net at {result['resolution']} px has {result['mult_adds']:,} and {result['parameters']:,}.",
            "",
            *_usage(size, output, named),
            "",
            *limits,
            *([""] if limits else []),
            f"Commit {card['commit']}, data {card['data']['digest']}, run {card['fingerprint']}.",
            "",
        ]
    )


def _usage(size: int, output: Mapping[str, Any], named: str) -> list[str]:
    return [
        "```python",
        'session = onnxruntime.InferenceSession("model.onnx")',
        f'({output["name"]},) = session.run(None, {{"images": images}})  # (N, {size}, {size}, 3) uint8, RGB',
        "```",
        "",
        f"Then {output['then']}{named}. {INPUT_FILE} says how an image is cropped and resized; it is normalised in "
        "the graph.",
    ]


def as_json(value: Any) -> bytes:
    """A value as a file of JSON."""
    return (json.dumps(value, indent=2) + "\n").encode()
