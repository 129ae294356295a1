"""A trained run as ONNX files that need nothing of this project: float32 and int8, with what is to be known of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import paths
from pipelines.config import Params
from pipelines.export import card
from pipelines.files import replace_folder
from pipelines.plan import SPLIT, row_folder, trained
from pipelines.tables import METRICS, Result
from pipelines.training.run import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    from torch import nn

    from pipelines.export.runtime import Latency
    from pipelines.test_sets import TestData

log = logging.getLogger(__name__)
CHECKED_IMAGES = 8
# Of a float graph's accuracy from that of its net, which may have run on a GPU: a few images of a thousand.
ALLOWED_DIFFERENCE = 0.01


@dataclass(frozen=True)
class Trained:
    """A finished run, its record and its net in evaluation mode."""

    scale: str
    table: str
    run: Run
    record: Mapping[str, Any]
    net: nn.Module

    def graph(self) -> onnx.ModelProto:
        """Its net as an ONNX graph in float32."""
        from pipelines.export.graph import to_onnx

        return to_onnx(self.net, self.run.input_size, card.OUTPUTS[self.run.task].name)

    @property
    def evaluated(self) -> str:
        """Where its metrics are, and how they are made."""
        path = paths.results(self.scale, self.table) / "metrics.json"
        return f"{path}; make it again with: python -m pipelines.evaluate {self.table} --scale {self.scale}"


def check_exportable(params: Params, table: str, option: str) -> None:
    """Raise ValueError that names the option which asks for an export, where a table's nets are not exported."""
    task = params.tables[table].task
    if task not in card.OUTPUTS:
        allowed = ", ".join(name for name, one in params.tables.items() if one.task in card.OUTPUTS)
        raise ValueError(
            f"{option}: nets of task {task} are not exported to ONNX; those of these tables are: {allowed}"
        )


def latencies(params: Params, scale: str, runs: Iterable[str], threads: int) -> dict[str, Latency]:
    """How long the float graph of each run takes for one image here. Raises ValueError for one that is not trained."""
    import numpy as np

    from pipelines.export.runtime import latency

    found = {}
    for name in runs:
        it = read_trained(params, scale, name)
        image = np.zeros((1, it.run.input_size, it.run.input_size, 3), np.uint8)
        found[name] = latency(it.graph().SerializeToString(), image, threads)
        log.info("%s: %s", name, found[name])
    return found


def export(params: Params, scale: str, name: str, result: Result, out: Path, threads: int) -> Path:
    """Write a run's folder below `out`, whole or not at all; returns it.

    result: what metrics.json says of the run. threads: by which latency is measured. Raises ValueError where the run is
    not trained, was evaluated with other weights or data, or its graph does not say what its net says, and for a folder
    that is something else.
    """
    folder = out / name
    if folder.exists() and not (folder / card.CARD).exists():
        raise ValueError(f"{folder} exists and is no export; name another folder with --out")
    replace_folder(folder, _files(params, read_trained(params, scale, name), result, threads))
    return folder


def _files(params: Params, it: Trained, result: Result, threads: int) -> dict[str, bytes]:
    """All files of an export, by name."""
    from pipelines.export.accuracy import accuracies
    from pipelines.export.runtime import latency, open_session
    from pipelines.test_sets import read_tests

    tests = read_tests(params, it.scale, it.table)
    if result["test_digest"] != tests[0].index.digest:
        raise ValueError(f"{tests[0].shards} are other shards than those of {it.evaluated}")
    images = _first_images(tests[0], it.run)
    models, largest_difference = _models(params, it, images)
    reached = accuracies({file: open_session(model) for file, model in models.items()}, it.run, tests)
    _check_accuracy(it, result, reached["model.onnx"])
    facts = {
        file: card.model_facts(model, precision, reached[file], asdict(latency(model, images[:1], threads)))
        for (file, precision), model in zip(card.MODELS.items(), models.values(), strict=True)
    }
    facts["model.onnx"]["largest_difference"] = largest_difference
    return {**models, **_words(it, result, facts)}


def read_trained(params: Params, scale: str, name: str) -> Trained:
    """A run of any table. Raises ValueError that says how to train it where that has not been done."""
    table = params.table_of(name)
    assert table is not None, name
    run, record = params.runs(table, scale)[name], trained(params, scale, name)

    from pipelines.training.job import trained_net  # takes seconds

    net = trained_net(run, record["num_outputs"], row_folder(params, scale, name) / "weights.pt")
    return Trained(scale, table, run, record, net.eval())


def _models(params: Params, it: Trained, images: npt.NDArray[np.uint8]) -> tuple[dict[str, bytes], float]:
    """The files of both graphs, and by how much the float one's outputs differ from the net's. Raises ValueError where
    that is too much.
    """
    from pipelines.export.graph import check_equal
    from pipelines.export.quantised import calibration_batches, quantise
    from pipelines.export.runtime import open_session
    from pipelines.training.reader import SplitReader

    graph = it.graph()
    content = graph.SerializeToString()
    found = check_equal(it.run.name, it.net, open_session(content), images)
    log.info("%s: its ONNX outputs differ from the net's by %.1g; now to int8", it.run.name, found)
    reader = SplitReader(paths.shards(it.scale, params.tables[it.table].dataset), SPLIT)
    quantised = quantise(graph, calibration_batches(it.run, reader))
    return dict(zip(card.MODELS, (content, quantised.SerializeToString()), strict=True)), found


def _first_images(data: TestData, run: Run) -> npt.NDArray[np.uint8]:
    import numpy as np

    places = np.arange(min(CHECKED_IMAGES, sum(data.reader.shard_sizes)))
    augment = run.augment
    images, _ = data.reader.decode_central(places, run.input_size, augment.central_fraction, augment.antialias)
    return np.asarray(images.numpy())


def _check_accuracy(it: Trained, result: Result, reached: Mapping[str, Any]) -> None:
    """Raise ValueError where the float graph does not reach what metrics.json says of its run."""
    metric = next(key for key in METRICS if key in result)
    if abs(reached[metric] - result[metric]) > ALLOWED_DIFFERENCE:
        found = f"{METRICS[metric]} {reached[metric]:.4f}, not {result[metric]:.4f}"
        raise ValueError(f"{it.run.name} reaches {found} as in {it.evaluated}")


def _words(it: Trained, result: Result, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """The files beside the graphs."""
    import torch

    from pipelines.export.runtime import processor
    from pipelines.training.job import net_spec
    from tasks.nets import build
    from tasks.nets.complexity import count

    with torch.device("meta"):
        counted = count(build(net_spec(it.run, it.record["num_outputs"])), it.run.input_size)
    described = card.input_description(it.run, it.record["num_outputs"])
    made = card.model_card(
        table=it.table,
        scale=it.scale,
        run=it.run,
        record=it.record,
        result=result,
        as_trained={"mult_adds": counted.mult_adds, "parameters": counted.parameters},
        models=facts,
        processor=processor(),
    )
    labels = card.labels_text(it.run.task, it.record["classes"])
    return {
        card.INPUT_FILE: card.as_json(described),
        card.CARD: card.as_json(made),
        card.CARD_TEXT: card.card_text(made, described).encode(),
        **({} if labels is None else {card.LABELS: labels.encode()}),
    }
