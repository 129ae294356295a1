"""What precision "auto" is, by what the device can do; and that runs and their teachers work in what it is."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.training.curve import read_curve
from pipelines.training.job import net_spec
from pipelines.training.loop import CURVE, WEIGHTS, train_local
from pipelines.training.precision import resolved, worker_precision
from pipelines.training.reader import Teaching
from pipelines.training.teaching import Teacher, store_predictions
from tasks.nets import build

PRECISIONS = ["32-true", "bf16-mixed"]
ABILITIES = {"32-true": [], "bf16-mixed": ["avx512_bf16"]}  # of a CPU, for auto to be each


@pytest.fixture
def cpu(monkeypatch):
    """Has this machine's CPU be able to do what is named, and nothing else."""

    def able(*names, **others):
        found = {"amx_bf16": False, "avx512_bf16": False, "avx512_f": True, **dict.fromkeys(names, True), **others}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)

    return able


@pytest.fixture
def gpu(monkeypatch):
    """Has this machine have a GPU of a compute capability; None: it has none."""

    def capable(major):
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: major is not None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major, minor=0))

    return capable


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["amx_bf16", "avx512_bf16"], "bf16-mixed"),
        (["amx_bf16"], "bf16-mixed"),
        (["avx512_bf16"], "bf16-mixed"),
        ([], "32-true"),
        (["amx_tile", "amx_int8", "avx512_vnni"], "32-true"),  # tiles of whole numbers alone
    ],
)
def test_auto_is_bfloat16_on_cpus_that_multiply_it(cpu, gpu, names, expected):
    cpu(*names)
    gpu(9)  # that the run does not ask for
    assert resolved("auto", on_gpu=False) == expected


def test_other_architectures_name_neither(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64", "neon": True})
    assert resolved("auto", on_gpu=False) == "32-true"


@pytest.mark.parametrize(
    ("major", "expected"), [(7, "32-true"), (8, "bf16-mixed"), (9, "bf16-mixed"), (12, "bf16-mixed"), (None, "32-true")]
)
def test_auto_is_bfloat16_on_gpus_that_multiply_it(cpu, gpu, major, expected):
    cpu("amx_bf16", "avx512_bf16")  # which is not what the run computes on
    gpu(major)
    assert resolved("auto", on_gpu=True) == expected


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_is_named_is_used_whatever_the_device(cpu, gpu, precision, on_gpu):
    for names, major in ([], 7), (["amx_bf16"], 9):
        cpu(*names)
        gpu(major)
        assert resolved(precision, on_gpu=on_gpu) == precision


def test_this_machine_answers():
    assert resolved("auto", on_gpu=False) in PRECISIONS
    if not torch.cuda.is_available():
        assert resolved("auto", on_gpu=True) == "32-true"


def test_the_first_worker_says_what_auto_is(make_job, cpu, gpu, caplog):
    caplog.set_level(logging.INFO, "pipelines")
    cpu("amx_bf16")
    gpu(7)
    run = make_job(precision="auto").run
    assert [worker_precision(run, rank) for rank in (0, 1)] == ["bf16-mixed"] * 2
    on_gpu = run.model_copy(update={"worker_gpus": 0.5, "name": "other"})
    assert worker_precision(on_gpu, 0) == "32-true"
    assert worker_precision(make_job(precision="bf16-mixed").run, 0) == "bf16-mixed"
    assert caplog.messages == [
        f"{run.name}: precision auto is bf16-mixed here",
        "other: precision auto is 32-true here",
    ]


def test_auto_is_a_run_of_its_own_and_the_same_one_on_every_machine(make_job, cpu):
    identities = []
    for names in [], ["amx_bf16"]:
        cpu(*names)
        identities.append(make_job(precision="auto").run.identity())
    assert identities[0] == identities[1]
    assert identities[0]["precision"] == "auto"


def test_a_run_trains_in_what_auto_is(make_job, one_thread, cpu, caplog):
    """Bit for bit as if that had been asked for."""
    caplog.set_level(logging.INFO, "pipelines")

    def trained(precision):
        job = make_job(precision=precision, epochs=0.25)
        train_local(job)
        losses = [row["loss"] for row in read_curve(job.folder / CURVE)]
        return losses, torch.load(job.folder / WEIGHTS, weights_only=True)

    asked = {precision: trained(precision) for precision in PRECISIONS}
    assert asked["32-true"][0] != asked["bf16-mixed"][0]
    for precision, (losses, weights) in asked.items():
        cpu(*ABILITIES[precision])
        found = trained("auto")
        assert found[0] == losses
        assert all(torch.equal(value, weights[name]) for name, value in found[1].items())
        assert [text.partition(": ")[2] for text in caplog.messages if "auto" in text] == [
            f"precision auto is {precision} here"
        ]
        caplog.clear()


def test_a_teacher_is_asked_in_what_auto_is(tiny_shards, make_job, tmp_path, cpu, gpu):
    gpu(None)
    spec = replace(net_spec(make_job().run, 3), batch_norm_decay=0.0)
    torch.manual_seed(5)
    net = build(spec)
    net(torch.rand(32, 3, 32, 32))  # its statistics are those of this batch, and its answers differ between images
    torch.save(net.state_dict(), tmp_path / "weights.pt")

    def kept(precision, name):
        teacher = Teacher("imagenet", tmp_path / "weights.pt", spec, Teaching(tmp_path / name, 32, 1.0, False))
        store_predictions(teacher, tiny_shards, "train", precision, 0)
        return np.load(tmp_path / name)

    asked = {precision: kept(precision, f"{precision}.npy") for precision in PRECISIONS}
    assert (asked["32-true"] != asked["bf16-mixed"]).any()
    for precision, rows in asked.items():
        cpu(*ABILITIES[precision])
        np.testing.assert_array_equal(kept("auto", f"auto_{precision}.npy"), rows)
