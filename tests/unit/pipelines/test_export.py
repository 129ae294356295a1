"""A trained run as ONNX: what the files say against PyTorch and the evaluation, and the model in MLflow's registry."""

import hashlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from pipelines import paths, tracking
from pipelines.budgets import Budget
from pipelines.choose import choose
from pipelines.config import Params, load
from pipelines.evaluate import evaluate
from pipelines.export import export, latencies, read_trained
from pipelines.export.graph import check_equal, to_onnx
from pipelines.export.runtime import open_session, outputs_of
from pipelines.section import parsed
from pipelines.shards import read_index
from pipelines.tracking import registry
from pipelines.tracking.client import connect
from pipelines.train import train
from pipelines.training.reader import SplitReader
from tasks.nets import NetSpec, build

pytestmark = pytest.mark.slow

RUN, SIZE, IMAGES = "small_net", 32, 30


def params():
    sample = load().scales["sample"]
    base = sample.recipes["imagenet"].defaults
    changes = {"resolution_divisor": 2, "epochs": 6, "batch_size": 8}
    changes["optimizer"] = {**base["optimizer"], "learning_rate": 0.02}
    changes["augment"] = {**base["augment"], "min_saturation": 1.0, "max_saturation": 1.0}
    table = {"task": "imagenet", "dataset": "tiny", "test": {"dataset": "tiny", "split": "val"}, "num_outputs": 1000}
    table["runs"] = {RUN: {"net": "mobilenet", "width": 0.25, "resolution": 2 * SIZE}}
    recipes = {"first": {"defaults": base | changes, "runs": {}}}
    small = {"datasets": {"tiny": sample.datasets["imagenet"].model_dump()}, "recipes": recipes}
    return parsed(Params, {"scale": "small", "tables": {"first": table}, "scales": {"small": small}}, "")


@pytest.fixture(scope="module")
def folder(tiny_shards, tmp_path_factory):
    """A table of one row, trained and evaluated; MLflow is told nothing yet."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_shards, folder / "tiny")
    index = replace(read_index(tiny_shards), dataset="imagenet", classes=("red", "green", "blue"))
    (folder / "tiny" / "index.json").write_bytes(index.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RESULTS", folder / "results")
        patch.setattr(paths, "DATA", folder / "data")
        patch.setattr(paths, "shards", lambda scale, name: folder / "tiny")
        with pytest.MonkeyPatch.context() as mute:
            mute.setattr(tracking, "sending", lambda: nullcontext(lambda spool: None))
            mute.setattr(tracking, "send", lambda spools: None)
            train(params(), "small", "first")
            evaluate(params(), "small", "first")
        yield folder


@pytest.fixture(scope="module")
def exported(folder):
    """What the command leaves where nobody listens at MLflow's address, and what it said of that."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setattr(registry.log, "warning", lambda text, *values: said.append(text % values))
        chosen = choose(params(), "small", "first", Budget({"mult_adds": 1e9}), folder / "out", to_export=True)
    assert chosen.run == RUN
    return folder / "out" / RUN, said


def seen_images(folder):
    """(30, 32, 32, 3) uint8, as a net sees them in evaluation, and their labels."""
    images, fields = SplitReader(folder / "tiny", "val").decode_central(np.arange(IMAGES), SIZE, 0.875, antialias=False)
    return images, np.array([sample["label"] for sample in fields])


def logits_of(folder, images):
    """By a plain forward pass."""
    net = build(NetSpec("mobilenet", 0.25, 3)).eval()
    net.load_state_dict(torch.load(folder / "results/small/first/train" / RUN / "weights.pt", weights_only=True))
    with torch.no_grad():
        return net(images.permute(0, 3, 1, 2) / 127.5 - 1).numpy()


def metrics_json(folder):
    return json.loads((folder / "results/small/first/metrics.json").read_text())["runs"][RUN]


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_the_float_graph_says_what_the_net_says_of_batches_of_any_size(folder, exported):
    images, _ = seen_images(folder)
    found = session(exported[0] / "model.onnx")
    (given,), (output,) = found.get_inputs(), found.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [SIZE, SIZE, 3])
    assert (output.name, output.type, output.shape[1:]) == ("logits", "tensor(float)", [3])
    for size in (1, 2, 7, IMAGES):
        np.testing.assert_allclose(
            found.run(None, {"images": images[:size].numpy()})[0], logits_of(folder, images[:size]), rtol=0, atol=1e-4
        )


def test_the_int8_graph_is_in_int8_and_agrees(folder, exported):
    images, _ = seen_images(folder)
    agree = session(exported[0] / "model_int8.onnx").run(None, {"images": images.numpy()})[0].argmax(axis=1)
    assert (agree == logits_of(folder, images).argmax(axis=1)).mean() > 0.9
    model = onnx.load(exported[0] / "model_int8.onnx")
    weights = [found for found in model.graph.initializer if len(found.dims) == 4]
    assert len(weights) == 27
    assert {found.data_type for found in weights} == {onnx.TensorProto.INT8}
    scales = {found.name: found.dims for found in model.graph.initializer}
    for convolution in weights:
        (node,) = [node for node in model.graph.node if convolution.name in node.input]
        assert node.op_type == "DequantizeLinear"
        assert list(scales[node.input[1]]) == [convolution.dims[0]], "a scale for each output channel"
    assert (exported[0] / "model_int8.onnx").stat().st_size < 0.6 * (exported[0] / "model.onnx").stat().st_size


def test_a_card_says_what_each_reaches_and_of_what(folder, exported):
    card, reached = json.loads((exported[0] / "card.json").read_text()), metrics_json(folder)
    assert {path.name for path in exported[0].iterdir()} == {
        *("model.onnx", "model_int8.onnx", "labels.txt", "input.json", "card.json", "card.md")
    }
    images, labels = seen_images(folder)
    for name, facts in card["models"].items():
        content = (exported[0] / name).read_bytes()
        assert facts["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert facts["bytes"] == len(content)
        guesses = session(exported[0] / name).run(None, {"images": images.numpy()})[0].argmax(axis=1)
        assert facts["metrics"]["top1_correct"] == (guesses == labels).sum()
        assert facts["metrics"]["samples"] == IMAGES
        latency = facts["latency"]
        assert 0 < latency["p10_ms"] <= latency["median_ms"] <= latency["p90_ms"]
        assert latency["threads"] == 1 and latency["passes"] >= 10
    shared = card["models"]["model.onnx"]["metrics"]
    assert shared == {key: reached[key] for key in shared}, "the evaluation's own"
    assert reached["top1"] > 0.6, "a net that has learned nothing would agree by chance"
    assert card["models"]["model.onnx"]["largest_difference"] <= 1e-4
    index = read_index(folder / "tiny")
    assert card["data"]["digest"] == card["test_data"]["digest"] == index.digest
    assert (card["run"], card["table"], card["scale"], card["metric"]) == (RUN, "first", "small", "top1")
    assert card["metrics_json"]["mult_adds"] > card["as_trained"]["mult_adds"] > 0
    text = (exported[0] / "card.md").read_text()
    assert f"{reached['top1']:.2%}" in text and card["fingerprint"] in text


def test_labels_and_input_are_enough_to_use_it(folder, exported):
    """From a JPEG to a word, by what the files beside the model say."""
    described = json.loads((exported[0] / "input.json").read_text())
    words = (exported[0] / described["output"]["labels"]).read_text().splitlines()
    size = described["from_an_image"]["resize"]["to"][0]
    fraction = described["from_an_image"]["crop"]["central_fraction_of_each_side"]
    images, _ = SplitReader(folder / "tiny", "val").decode_central(np.arange(6), size, fraction, antialias=False)
    found = session(exported[0] / "model.onnx").run(None, {described["input"]["name"]: images.numpy()})[0]
    bright = [("red", "green", "blue")[int(image.float().mean((0, 1)).argmax())] for image in images]
    assert sum(words[guess] == colour for guess, colour in zip(found.argmax(axis=1), bright, strict=True)) >= 4
    scale, mean = described["normalisation"]["scale"], described["normalisation"]["mean"]
    assert [(0 - mean) * scale, (255 - mean) * scale] == described["normalisation"]["gives"]


def test_files_tell_nothing_of_the_machine(exported):
    for path in exported[0].iterdir():
        content = path.read_bytes()
        assert str(Path.cwd()).encode() not in content and b".py" not in content, path.name


def test_without_mlflow_it_is_said_how_to_register_later_and_that_works(folder, exported, tmp_path, monkeypatch):
    (said,) = exported[1]
    assert said.startswith("not registered, MLflow at http://127.0.0.1:9: ")
    assert said.endswith(f"; register it later: python -m pipelines.tracking.registry {exported[0]}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    registry.main([str(exported[0])])
    registry.main([str(exported[0])])
    client = connect()
    (version,) = client.search_model_versions("name = 'first-small'")
    assert client.get_model_version_by_alias("first-small", "chosen").version == version.version
    assert client.get_run(version.run_id).info.run_name == RUN
    tags = {"run": RUN, "top1": str(metrics_json(folder)["top1"])}
    assert tags.items() <= version.tags.items() and {"top1_int8", "mult_adds"} <= version.tags.keys()
    images, _ = seen_images(folder)
    model = mlflow.pyfunc.load_model("models:/first-small@chosen")
    expected = torch.from_numpy(outputs_of(session(exported[0] / "model.onnx"), images.numpy())).softmax(dim=1)
    np.testing.assert_allclose(model.predict(images.numpy()), expected.numpy(), atol=1e-4)


def test_a_store_that_came_after_the_weights_were_sent_gets_them_from_the_row(exported, tmp_path, monkeypatch):
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert registry.register(exported[0])
        version = connect().get_model_version_by_alias("first-small", "chosen")
        (weights,) = folder.rglob("weights.pt")
        assert str(version.version) == "1" and weights.stat().st_size > 100_000
    with pytest.raises(ValueError, match="card.json does not exist; name a folder that "):
        registry.register(tmp_path)


def test_a_run_that_mlflow_does_not_know_is_not_registered(exported, tmp_path, monkeypatch, caplog):
    shutil.copytree(exported[0], tmp_path / "export")
    card = json.loads((exported[0] / "card.json").read_text())
    (tmp_path / "export" / "card.json").write_text(json.dumps({**card, "fingerprint": "0" * 64}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert not registry.register(tmp_path / "export")
    assert f"experiment first-small has no finished run of {RUN} with fingerprint 0000" in caplog.text


def test_a_graph_that_says_something_else_is_an_error(folder):
    images = seen_images(folder)[0].numpy()
    it = read_trained(params(), "small", RUN)
    graph = open_session(it.graph().SerializeToString())
    assert check_equal(RUN, it.net, graph, images) <= 1e-4
    with torch.no_grad():
        it.net.classifier.bias[0] += 0.002 * max(1, np.abs(outputs_of(graph, images)).max())
    with pytest.raises(ValueError, match=rf"{RUN}: ONNX outputs differ from the net's by 0.00\d+; 0.0001 is allowed"):
        check_equal(RUN, it.net, graph, images)
    with torch.no_grad():
        it.net.classifier.bias[0] = torch.nan
    with pytest.raises(ValueError, match="differ from the net's by nan"):
        check_equal(RUN, it.net, graph, images)


def test_what_was_evaluated_otherwise_is_not_exported(folder, tmp_path):
    reached = metrics_json(folder)
    with pytest.raises(ValueError, match="tiny are other shards than those of .*metrics.json; make it again with: "):
        export(params(), "small", RUN, {**reached, "test_digest": "0" * 64}, tmp_path, 1)
    with pytest.raises(ValueError, match=r"small_net reaches top-1 .*, not 0.0500 as in .*; make it again with: "):
        export(params(), "small", RUN, {**reached, "top1": 0.05}, tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "thesis.txt").write_text("of mine")
    with pytest.raises(ValueError, match="exists and is no export; name another folder with --out"):
        export(params(), "small", RUN, reached, tmp_path, 1)
    assert (tmp_path / RUN / "thesis.txt").read_text() == "of mine"


def test_latency_is_measured_where_a_budget_asks_for_it(folder, tmp_path, capsys):
    chosen = choose(params(), "small", "first", Budget({"latency_ms": 1e6}), tmp_path, threads=2)
    assert 0 < chosen.latency_p10_ms <= chosen.latency_ms <= chosen.latency_p90_ms < 1e6
    assert "ms, threads: 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"nearest is small_net: [\d.]+ ms, more than 1e-06"):
        choose(params(), "small", "first", Budget({"latency_ms": 1e-6}), tmp_path)
    (found,) = latencies(params(), "small", [RUN], 1).values()
    assert found.threads == 1 and found.passes >= 10


@pytest.mark.parametrize(("net", "size"), [("squeezenet", 56), ("alexnet", 63), ("facenet_nn2", 56)])
def test_other_nets_are_plain_graphs_too(net, size):
    torch.manual_seed(0)
    spec = NetSpec(net, 1.0, 5)
    module = build(spec).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    graph = to_onnx(module, size, "logits")
    assert not {"BatchNormalization", "Gather", "Range", "Shape"} & {node.op_type for node in graph.graph.node}
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    found = outputs_of(open_session(graph.SerializeToString()), images)
    with torch.no_grad():
        expected = module(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 1e-2, "of a net that says the same of everything nothing would be known"
