"""params.yaml is refused with the file, the key, the value and what is allowed."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from pipelines.config import load
from pipelines.section import read_yaml
from pipelines.training.run import Run

PARAMS = Path("params.yaml")


@pytest.fixture(scope="module")
def whole():
    return read_yaml(PARAMS)


@pytest.fixture
def tree(whole):
    return copy.deepcopy(whole)


def write(tmp_path, tree):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False))
    return path


def test_both_scales_have_every_row_of_the_paper():
    params = load()
    for scale in ("sample", "paper"):
        runs = params.runs("imagenet", scale)
        assert len(runs) == 23  # 22 of the paper, and the one that Table 13 starts from
        grid = {(run.width, run.resolution) for run in runs.values() if run.net == "mobilenet"}
        assert grid == {(width, size) for width in (1.0, 0.75, 0.5, 0.25) for size in (224, 192, 160, 128)}
    assert {run.kind for run in params.runs("imagenet", "sample").values()} == {"local", "ddp", "async"}
    assert {run.kind for run in params.runs("imagenet", "paper").values()} == {"async"}


def test_detectors_start_from_the_imagenet_runs_of_their_bodies():
    """At paper scale; at sample scale the dear ones go on from the same net at half its input, or from SSD's."""
    params = load()
    bodies = {"vgg": "imagenet_vgg16", "inception_v2": "imagenet_inception_v2", "mobilenet": "imagenet_w100_r224"}
    runs = params.runs("detection", "paper")
    assert len(runs) == 9
    for name, run in runs.items():
        assert run.init_from == bodies[name.split("_", 2)[2]]
        assert (run.resolution, run.detection.proposals, run.detection.second_stage_boxes) == (
            600 if "600" in name else 300, 300, 64,
        )  # fmt: skip
        assert (run.augment.min_object_shares is not None) == ("ssd" in name)
        assert run.optimizer.rule == ("rmsprop" if "ssd" in name else "momentum")
    for name, run in params.runs("detection", "sample").items():
        nearer = {"detection_faster300_inception_v2": "detection_ssd300_inception_v2"}
        wanted = name.replace("600", "300") if "600" in name else nearer.get(name, bodies[name.split("_", 2)[2]])
        assert run.init_from == wanted


def test_a_row_overrides_the_defaults_key_by_key(tmp_path, tree):
    tree["scales"]["sample"]["recipes"]["imagenet"]["runs"]["imagenet_w025_r128"] = {"optimizer": {"momentum": 0.5}}
    run = load(write(tmp_path, tree)).runs("imagenet", "sample")["imagenet_w025_r128"]
    assert run.optimizer.momentum == 0.5
    assert run.optimizer.learning_rate == 0.045
    assert run.input_size == 32


DEFAULTS = ("scales", "sample", "recipes", "imagenet", "defaults")
DATASET = ("scales", "paper", "datasets", "imagenet")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("scale",), "tiny", "scale 'tiny' is unknown; there are: paper, sample"),
        (("colour",), 1, "colour: Extra inputs are not permitted"),
        ((*DEFAULTS, "epocs"), 3, "run imagenet_w100_r224: epocs: Extra inputs are not permitted"),
        ((*DEFAULTS, "epochs"), -1, "epochs: Input should be greater than 0 .given: -1."),
        ((*DEFAULTS, "kind"), "sync", "kind: Input should be 'local', 'ddp' or 'async' .given: 'sync'."),
        ((*DEFAULTS, "num_workers"), 3, "kind local has 1 worker, not num_workers 3"),
        ((*DEFAULTS, "resolution_divisor"), 3, "resolution 224 is not a multiple of 3"),
        ((*DEFAULTS, "augment", "min_area"), 1.0, None),
        ((*DEFAULTS, "augment", "min_aspect"), 2.0, "min_aspect 2.0 is above max_aspect 1.33"),
        ((*DEFAULTS, "optimizer", "learning_rate"), float("inf"), "learning_rate: Input should be a finite number"),
        ((*DEFAULTS, "batch_size"), True, "batch_size: Input should be a valid integer .given: True."),
        ((*DATASET, "shard", "seed"), -1, "shard.seed: Input should be greater than or equal to 0 .given: -1."),
        ((*DATASET, "files", "ILSVRC2012_img_val.tar", "checksum"), "md5:12", "'md5:12' is not md5:<32 hex digits> or"),
        ((*DATASET, "shard", "bad_images"), "ignore", "bad_images: Input should be 'error' or 'skip'"),
        ((*DATASET, "origin"), None, None),
        ((*DATASET, "origin"), False, "imagenet.origin: Input should be a valid string .given: False."),
        (("tables", "imagenet", "dataset"), "imagenot", "tables.imagenet.dataset 'imagenot' is unknown"),
        (("tables", "imagenet", "num_outputs"), 0, "num_outputs: Input should be greater than 0 .given: 0."),
        (("tables", "imagenet", "test"), {"dataset": "imagenet"}, "tables.imagenet.test.split: Field required"),
        (("tables", "imagenet", "runs", "w_1.0"), {}, "run 'w_1.0': a name is of a-z, 0-9 and _"),
        (("scales", "paper", "recipes", "imagenet", "runs", "imagenet_w9"), {}, "run 'imagenet_w9' is unknown"),
    ],
)
def test_a_bad_value_is_named(tmp_path, tree, keys, value, message):
    block = tree
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    path = write(tmp_path, tree)
    if message is None:
        load(path)
        return
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(tmp_path, tree):
    broken = copy.deepcopy(tree)
    del broken["scales"]["paper"]["recipes"]["imagenet"]["defaults"]["batch_size"]
    with pytest.raises(ValueError, match="run imagenet_w100_r224: batch_size: Field required"):
        load(write(tmp_path, broken))
    del tree["scales"]["paper"]["datasets"]["imagenet"]["origin"]
    with pytest.raises(ValueError, match="scales.paper.datasets.imagenet.origin: Field required"):
        load(write(tmp_path, tree))


def test_a_key_that_comes_twice_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("scale: sample\ntables: {}\nscales:\n  sample:\n    recipes: {}\n    recipes: {}\n")
    with pytest.raises(ValueError, match=r"params.yaml: line 5: key 'recipes' comes twice in one block"):
        load(path)


def test_a_block_may_be_merged_into_another(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("y: &b {k: 1}\nx: {a: &A {<<: *b, k: 2}}\nz: {<<: *A, k: 3}\n")
    assert read_yaml(path) == {"y": {"k": 1}, "x": {"a": {"k": 2}}, "z": {"k": 3}}


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="params.yaml does not exist"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load(tmp_path / "params.yaml")


def test_unknown_names_are_refused():
    params = load()
    with pytest.raises(ValueError, match="table 'coco' is unknown; there are: .*imagenet, stanford_dogs"):
        params.runs("coco")
    with pytest.raises(ValueError, match="data set 'cifar' is unknown"):
        params.dataset("cifar")
    with pytest.raises(ValueError, match="scale 'huge' is unknown"):
        params.runs("imagenet", "huge")


def test_every_table_has_its_rows_at_both_scales():
    params = load()
    rows = {"web_dogs": 5, "stanford_dogs": 5, "celeba_attributes": 3, "face_attributes": 6, "face_embeddings": 5}
    for scale in params.scales:
        found = {table: len(params.runs(table, scale)) for table in params.tables}
        assert rows.items() <= found.items()
        students = [run for run in params.runs("face_attributes", scale).values() if run.teacher]
        assert {(run.width, run.resolution) for run in students} == {
            (w, s) for w in (1.0, 0.5, 0.25) for s in (224, 128)
        }
        assert all(run.optimizer.weight_decay == 0 for run in students), "paper, section 4.5: no regularization"
        embeddings = params.runs("face_embeddings", scale)
        assert embeddings["face_embedding_nn2"].optimizer.rule == "adagrad"
        assert params.table_of("web_dogs_w100_r224") == "web_dogs"
    assert params.table_of("nobody") is None
    assert params.runs("web_dogs", "sample")["web_dogs_inception_v3"].input_size == 75


def test_a_row_of_another_rule_stands_alone(tmp_path, tree):
    runs = tree["tables"]["imagenet"]["runs"]
    alone = {"rule": "adagrad", "initial_accumulator": 0.1, "learning_rate": 0.05, "weight_decay": 0.0}
    runs["imagenet_w025_r128"]["optimizer"] = {**alone, "clip_norm": None, "weight_average": None}
    recipe = tree["scales"]["sample"]["recipes"]["imagenet"]["runs"]
    recipe["imagenet_w025_r128"] = {"optimizer": {"learning_rate": 0.2}}
    optimizer = load(write(tmp_path, tree)).runs("imagenet", "sample")["imagenet_w025_r128"].optimizer
    assert (optimizer.rule, optimizer.learning_rate, optimizer.initial_accumulator) == ("adagrad", 0.2, 0.1)
    recipe["imagenet_w025_r128"]["optimizer"]["momentum"] = 0.9
    with pytest.raises(ValueError, match="run imagenet_w025_r128: optimizer.adagrad.momentum: Extra inputs"):
        load(write(tmp_path, tree))


def test_the_recipe_of_faster_rcnn_is_read_and_written(tmp_path, tree):
    row = tree["tables"]["imagenet"]["runs"]["imagenet_w025_r128"]
    around = {"learning_rate": 0.003, "weight_decay": 0.0, "clip_norm": 10.0, "weight_average": None}
    row["schedule"] = {"decay_rate": 0.1, "decay_epochs": [8, 10.5]}
    row["optimizer"] = {"rule": "momentum", "momentum": 0.9, **around}
    run = load(write(tmp_path, tree)).runs("imagenet", "sample")["imagenet_w025_r128"]
    assert (run.optimizer.rule, run.optimizer.momentum) == ("momentum", 0.9)
    assert run.schedule.decay_epochs == (8.0, 10.5)
    assert Run.model_validate(json.loads(json.dumps(run.model_dump()))) == run


@pytest.mark.parametrize("epochs", [2, 2.0])
def test_a_number_of_epochs_is_written_as_ever(tmp_path, tree, epochs):
    """Lists beside it leave the fingerprints of trained runs as they are."""
    tree["tables"]["imagenet"]["runs"]["imagenet_w025_r128"]["schedule"] = {"decay_epochs": epochs}
    run = load(write(tmp_path, tree)).runs("imagenet", "sample")["imagenet_w025_r128"]
    written = json.dumps(run.identity()["schedule"])
    assert written == '{"decay_rate": 0.8, "decay_epochs": 2.0, "warmup_steps": 20}'


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"rule": "sgd"}}, "optimizer: .*'sgd' .* expected tags: 'rmsprop', 'adagrad', 'momentum'"),
        ({"optimizer": {"rule": "adagrad"}}, "optimizer.adagrad.learning_rate: Field required"),
        ({"optimizer": {"initial_accumulator": 0.1}}, "optimizer.rmsprop.initial_accumulator: Extra inputs"),
        ({"optimizer": {"decay": 1.5}}, "optimizer.rmsprop.decay: Input should be less than or equal to 1 .given: 1.5"),
        ({"schedule": {"decay_epochs": 0}}, "schedule.decay_epochs.number: .* greater than 0 .given: 0"),
        ({"schedule": {"decay_epochs": "often"}}, "schedule.decay_epochs.number: .* valid number.* .given: 'often'"),
        ({"schedule": {"decay_epochs": []}}, r"schedule.decay_epochs.list: .* at least 1 item .* .given: \[\]"),
        ({"schedule": {"decay_epochs": [0, 8]}}, "schedule.decay_epochs.list.0: .* greater than 0 .given: 0"),
        ({"schedule": {"decay_epochs": [8, 8.0]}}, r"decay_epochs.list: Epochs should ascend .given: \[8, 8.0\]"),
        ({"schedule": {"decay_epochs": [9, 8]}}, r"decay_epochs.list: Epochs should ascend .given: \[9, 8\]"),
        ({"schedule": {"decay_epochs": [8, float("inf")]}}, "decay_epochs.list.1: .* finite number .given: inf"),
        ({"teacher": "nobody"}, "run imagenet_w025_r128: teacher is 'nobody'; it must be a run of a table"),
        ({"teacher": "weights.pt"}, "teacher is 'weights.pt'; it must be a run of a table"),
        ({"init_from": "nobody"}, "init_from is 'nobody'; it must be a run of a table or a .pt file"),
        ({"teacher_outputs": "once"}, "teacher_outputs: Input should be 'stored' or 'step'"),
        ({"images_per_identity": 5}, "images_per_identity is 5; it must divide batch_size 32 and be above 1"),
        ({"images_per_identity": 1}, "images_per_identity is 1; it must divide batch_size 32 and be above 1"),
        ({"images_per_identity": 32}, "images_per_identity is 32; it must divide batch_size 32"),
        ({"resolution_divisor": 3.99}, "resolution 128 is not a multiple of 3.99"),
    ],
)
def test_a_bad_row_is_told(tmp_path, tree, values, message):
    tree["tables"]["imagenet"]["runs"]["imagenet_w025_r128"].update(values)
    path = write(tmp_path, tree)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: run imagenet_w025_r128: ")
    assert "\n" not in str(error.value)


def test_a_row_may_need_a_run_of_any_table_or_start_from_a_file(tmp_path, tree):
    rows = tree["tables"]["imagenet"]["runs"]
    rows["imagenet_w025_r128"].update(init_from="keras.pt", teacher="web_dogs_w100_r224", images_per_identity=8)
    run = load(write(tmp_path, tree)).runs("imagenet", "sample")["imagenet_w025_r128"]
    assert run.origins == {"init_from": "keras.pt", "teacher": "web_dogs_w100_r224"}
    assert load().runs("imagenet", "sample")["imagenet_w025_r128"].origins == {}


@pytest.mark.parametrize(("divisor", "side"), [(3.997, 32), (4, 32), (4.003, 32), (2.56, 50), (1.0, 128)])
def test_an_input_may_be_a_thousandth_off_its_resolution(tmp_path, tree, divisor, side):
    tree["tables"]["imagenet"]["runs"]["imagenet_w025_r128"]["resolution_divisor"] = divisor
    assert load(write(tmp_path, tree)).runs("imagenet", "sample")["imagenet_w025_r128"].input_size == side


def test_a_run_of_two_tables_and_a_test_set_that_is_none_are_refused(tmp_path, tree):
    tree["tables"]["web_dogs"]["runs"]["imagenet_w025_r128"] = {"net": "mobilenet", "width": 0.25, "resolution": 128}
    with pytest.raises(ValueError, match="run 'imagenet_w025_r128' is in two tables"):
        load(write(tmp_path, tree))
    del tree["tables"]["web_dogs"]["runs"]["imagenet_w025_r128"]
    tree["tables"]["web_dogs"]["test"]["dataset"] = "cats"
    with pytest.raises(ValueError, match=r"tables.web_dogs.test.dataset 'cats' is unknown; there are: "):
        load(write(tmp_path, tree))


def test_the_tree_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load().scale = "paper"  # type: ignore[misc]
