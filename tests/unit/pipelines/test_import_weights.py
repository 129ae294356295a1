"""Keras's MobileNet, run by Keras itself, against the imported weights; and what is no MobileNet of Keras."""

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipelines.import_weights import import_weights, main
from tasks.nets import NetSpec, build

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-3  # of logits

# Saves each case's net with random weights and statistics, images, and the logits that Keras computes of them.
ORACLE = """
import json, sys
import keras, numpy as np
folder, cases = sys.argv[1], json.loads(sys.argv[2])
for name, width, size in cases:
    generator = np.random.default_rng(size)
    keras.utils.set_random_seed(size)
    net = keras.applications.MobileNet((size, size, 3), width, weights=None, classifier_activation=None)
    for variable in net.weights:
        spread = {"gamma": (0.7, 1.3), "beta": (-0.5, 1.5), "bias": (-1, 1)}.get(variable.name)
        if spread:
            variable.assign(generator.uniform(*spread, variable.shape))
    preds = net.get_layer("conv_preds")
    preds.kernel.assign(5 * preds.kernel)  # logits spread as those of a trained net
    patches = generator.uniform(-1, 1, (3, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    images = (0.7 * patches + generator.uniform(-0.3, 0.3, patches.shape)).astype("float32")
    for layer in net.layers:
        layer.momentum = 0.0  # the moving statistics become those of the images
    net(images, training=True)
    np.savez(f"{folder}/{name}.npz", images=images, logits=keras.ops.convert_to_numpy(net(images)))
    net.save(f"{folder}/{name}.h5")
    net.save_weights(f"{folder}/{name}.weights.h5")
"""


def oracle(folder, cases):
    command = [sys.executable, "-c", ORACLE, folder, json.dumps(cases)]
    environment = {**os.environ, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def keras_nets(tmp_path_factory):
    return oracle(tmp_path_factory.mktemp("keras"), [("small", 0.25, 96)])


def as_published(whole, target):
    """The weights of a whole model alone, with the names that Keras 2 gave them."""
    with h5py.File(whole) as file, h5py.File(target, "w") as published:

        def add(where, item):
            if isinstance(item, h5py.Dataset):
                renamed = where.replace("kernel", "depthwise_kernel") if "_dw_" in where else where
                published[f"{renamed}:0"] = item[...]
            elif "/" not in where:
                published.require_group(where)

        file["model_weights"].visititems(add)


def logits(weights, images, width, **options):
    net = build(NetSpec("mobilenet", width=width, **options)).eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    with torch.inference_mode():
        return net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def check_against_oracle(source, case, width):
    import_weights(source, source.with_suffix(".pt"))
    known = np.load(case)
    ours = logits(source.with_suffix(".pt"), known["images"], width)
    assert known["logits"].std(axis=0).mean() > 0.1, "the images make no difference"
    assert np.abs(ours - known["logits"]).max() < TOLERANCE
    elsewhere = logits(source.with_suffix(".pt"), known["images"], width, padding="symmetric")
    assert np.abs(elsewhere - known["logits"]).max() > 100 * TOLERANCE, "padding makes no difference"


@pytest.mark.slow
def test_the_imported_net_computes_what_keras_computes(keras_nets):
    as_published(keras_nets / "small.h5", keras_nets / "small_tf.h5")
    check_against_oracle(keras_nets / "small_tf.h5", keras_nets / "small.npz", 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["small.h5", "small.weights.h5"])
def test_other_layouts_of_keras_hold_the_same(keras_nets, layout):
    check_against_oracle(keras_nets / layout, keras_nets / "small.npz", 0.25)


@pytest.mark.slow
def test_every_width_and_every_size_of_the_published_files(tmp_path):
    cases = [("a", 1.0, 224), ("b", 0.75, 192), ("c", 0.5, 160), ("d", 0.25, 128)]
    oracle(tmp_path, cases)
    for name, width, _ in cases:
        as_published(tmp_path / f"{name}.h5", tmp_path / f"{name}_tf.h5")
        check_against_oracle(tmp_path / f"{name}_tf.h5", tmp_path / f"{name}.npz", width)


@pytest.fixture
def made(tmp_path):
    """Makes an .h5 in the published layout, without Keras; `change` may spoil its datasets by name before."""

    def make(change=lambda weights: None, width=0.25):
        depths = [max(8, int(width * depth)) for depth in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
        shapes = {"conv1": (3, 3, 3, depths[0])}
        for block in range(1, 14):
            shapes[f"conv_dw_{block}"] = (3, 3, depths[block - 1], 1)
            shapes[f"conv_pw_{block}"] = (1, 1, depths[block - 1], depths[block])
        weights = {f"{layer}/{layer}/kernel:0": np.ones(shape, "f4") for layer, shape in shapes.items()}
        for layer, shape in shapes.items():
            for part in ("gamma", "beta", "moving_mean", "moving_variance"):
                channels = shape[2] if "_dw_" in layer else shape[3]
                weights[f"{layer}_bn/{layer}_bn/{part}:0"] = np.ones(channels, "f4")
        weights["conv_preds/conv_preds/kernel:0"] = np.zeros((1, 1, depths[-1], 5), "f4")
        weights["conv_preds/conv_preds/bias:0"] = np.zeros(5, "f4")
        change(weights)
        with h5py.File(tmp_path / "made.h5", "w") as file:
            for name, value in weights.items():
                file[name] = value
        return tmp_path / "made.h5"

    return make


def test_the_log_line_says_what_was_imported(made, caplog):
    caplog.set_level(logging.INFO)
    source = made(width=0.75)
    import_weights(source, source.with_suffix(".pt"))
    (line,) = caplog.messages
    sha256 = subprocess.run(["sha256sum", source], capture_output=True, text=True, check=True).stdout.split()[0]
    assert "width 0.75" in line
    assert "5 classes" in line
    assert f"sha256:{sha256}" in line


def test_without_its_last_layer_a_body_comes_out(made, caplog):
    caplog.set_level(logging.INFO)
    source = made()
    import_weights(source, source.with_name("whole.pt"))
    with h5py.File(source, "a") as file:
        del file["conv_preds"]
    import_weights(source, source.with_name("body.pt"))
    whole, body = (torch.load(source.with_name(f"{name}.pt"), weights_only=True) for name in ("whole", "body"))
    assert whole.keys() - body.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(value, whole[name]) for name, value in body.items())
    assert "no classifier" in caplog.messages[-1]


def replaced(name, value):
    return lambda weights: weights.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("conv_dw_7/conv_dw_7/kernel:0"), "conv_dw_7/kernel is missing"),
        (lambda weights: weights.pop("conv_pw_2_bn/conv_pw_2_bn/beta:0"), "conv_pw_2_bn/beta is missing"),
        (lambda weights: weights.pop("conv_preds/conv_preds/bias:0"), "conv_preds/bias is missing"),
        (replaced("dense/dense/kernel:0", np.zeros(3)), "it has dense/kernel"),
        (replaced("conv1/conv1_1/kernel:0", np.zeros((3, 3, 3, 8))), "it has 138 weights for 137 names"),
        (replaced("conv1/conv1/kernel:0", np.zeros((3, 3, 1, 8))), "conv1's kernel has shape (8, 1, 3, 3)"),
        (replaced("conv_dw_1/conv_dw_1/kernel:0", np.zeros((3, 3, 8, 2))), "conv_dw_1's kernel has shape"),
        (replaced("conv_pw_9/conv_pw_9/kernel:0", np.zeros(7)), "conv_pw_9's kernel has shape (7,)"),
        (replaced("conv_pw_13_bn/conv_pw_13_bn/beta:0", np.float32(1)), "has shape"),
        (replaced("conv1_bn/conv1_bn/gamma:0", np.full(8, np.nan)), "conv1's gamma has values that are not finite"),
        (replaced("conv1_bn/conv1_bn/moving_variance:0", np.full(8, -1.0)), "conv1's variance has values"),
        (replaced("conv1/conv1/kernel:0", h5py.ExternalLink("other.h5", "/x")), "conv1/kernel is missing"),
        (replaced("conv1/conv1/kernel:0", h5py.SoftLink("/conv_pw_1")), "conv1/kernel is missing"),
        (replaced("conv1/conv1/kernel:0", np.zeros((3, 3, 3, 8), "i4")), "conv1/kernel is missing"),
    ],
)
def test_what_is_not_mobilenet_is_refused_by_the_layer(made, change, message):
    source = made(change)
    with pytest.raises(ValueError, match="made.h5: ") as error:
        import_weights(source, source.with_suffix(".pt"))
    assert message in str(error.value)
    assert not list(source.parent.glob("*.pt*"))


def test_the_state_of_an_optimizer_and_a_dropouts_seed_are_passed_over(made):
    source = made(
        lambda weights: weights.update({"optimizer_weights/adam/m:0": np.ones(3), "dropout/seed": np.ones(2, "u4")})
    )
    import_weights(source, source.with_suffix(".pt"))
    assert len(torch.load(source.with_suffix(".pt"), weights_only=True)) == 27 * 6 + 2


def test_a_size_that_is_only_claimed_is_not_allocated(made):
    source = made()
    with h5py.File(source, "a") as file:
        del file["conv1/conv1/kernel:0"]
        file.create_dataset("conv1/conv1/kernel:0", (3, 3, 3, 1 << 40), "f4", chunks=(3, 3, 3, 8))
    with pytest.raises(ValueError, match="claim to have 118,747,"):
        import_weights(source, source.with_suffix(".pt"))


def test_files_that_are_not_whole_or_of_another_kind_are_refused(made, tmp_path):
    whole = made().read_bytes()
    for length in (8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.h5").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.h5: not a whole HDF5 file"):
            import_weights(tmp_path / "cut.h5", tmp_path / "out.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "torch.h5")
    (tmp_path / "pickle.h5").write_bytes(pickle.dumps(os.system))
    (tmp_path / "empty.h5").touch()
    for name in ("torch.h5", "pickle.h5", "empty.h5"):
        with pytest.raises(ValueError, match=f"{name} is neither HDF5"):
            import_weights(tmp_path / name, tmp_path / "out.pt")
    with (tmp_path / "huge.h5").open("wb") as file:
        file.write(whole)
        file.truncate(1 << 33)
    with pytest.raises(ValueError, match="huge.h5 has 8.6 GB; allowed are 67.1 MB"):
        import_weights(tmp_path / "huge.h5", tmp_path / "out.pt")
    assert not list(tmp_path.glob("out*"))


def test_the_output_must_be_a_pt_file(made):
    source = made()
    before = source.read_bytes()
    with pytest.raises(ValueError, match="must end in .pt"):
        import_weights(source, source)
    assert source.read_bytes() == before


def test_a_missing_package_is_named_with_its_extra(made, monkeypatch, capsys):
    source = made()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SystemExit) as end:
        main([str(source), str(source.with_suffix(".pt"))])
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {source}: an .h5 file needs the package h5py, of the extra")


def test_what_would_cost_far_more_to_read_than_to_write_is_refused(tmp_path):
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        group = file
        for _ in range(30):
            group = group.create_group("g")
    with pytest.raises(ValueError, match="at depth 9"):
        import_weights(tmp_path / "deep.h5", tmp_path / "o.pt")
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("conv1/kernel", (1,), "f4", maxshape=(None,), chunks=(1 << 25,), compression="gzip")
    with pytest.raises(ValueError, match=r"conv1/kernel has chunks of \(33554432,\)"):
        import_weights(tmp_path / "chunk.h5", tmp_path / "o.pt")


def test_a_folder_that_is_not_there_is_named(made, tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*gone"):
        import_weights(made(), tmp_path / "gone" / "o.pt")
