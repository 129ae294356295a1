"""Secrets planted in the environment and in params.yaml: they come out in no file, log of Ray's, MLflow run or line."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROW = "imagenet_w025_r128"
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-key-of-s3",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "planted-password",
    "RAY_AUTH_TOKEN": "planted-token-of-ray-0123456789abcdef",
}
FORMS = (b"planted", base64.b64encode(b"admin:planted-password"))
TRAIN_AND_EVALUATE = """
from pipelines import evaluate, train
train.main(["imagenet"])
evaluate.main(["imagenet"])
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project of one row of one table, on a tiny data set."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("pipelines", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    table = params["tables"]["imagenet"]
    params["tables"] = {"imagenet": {**table, "runs": {ROW: table["runs"][ROW]}}}
    for scale in params["scales"].values():
        scale["recipes"] = {"imagenet": {**scale["recipes"]["imagenet"], "runs": {}}}
    params["scales"]["sample"]["recipes"]["imagenet"]["defaults"].update(epochs=0.5)
    data = params["scales"]["sample"]["datasets"]["imagenet"]
    data["origin"] = "sample:imagenet?classes=4&train=32&val=8&size=96&seed=1"
    data["shard"]["samples"] = {"train": None, "val": None}
    write(folder, params)
    return folder


def write(folder: Path, params: dict) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    unset = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**inherited, **PLANTED, **environment}, capture_output=True
    )


def leaks(folder: Path) -> Iterator[Path]:
    """The files that hold what was planted; params.yaml, where a test may have put it, is not looked into."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "params.yaml" and any(form in path.read_bytes() for form in FORMS):
            yield path


def test_what_the_environment_holds_reaches_no_file_and_no_line(project):
    said = b""
    for arguments in (
        ("-m", "pipelines.fetch", "imagenet"),
        ("-m", "pipelines.shard", "imagenet"),
        ("-c", TRAIN_AND_EVALUATE),
        ("-m", "pipelines.tracking"),
    ):
        done = run(project, *arguments)
        said += done.stdout + done.stderr
        assert done.returncode == 0, said.decode()
    dead = {"MLFLOW_TRACKING_URI": "http://me:planted-too@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    away = run(project, "-m", "pipelines.tracking", **dead)
    said += away.stdout + away.stderr
    assert away.returncode == 1
    assert b"not sent: ConnectionRefusedError" in said
    assert (project / "mlflow.db").stat().st_size > 0
    assert list((project / "mlruns").rglob("weights.pt"))
    assert list((project / "results").rglob("mlflow-*.json"))
    assert [*leaks(project)] == []
    assert not any(form in said for form in FORMS)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps all that is of a session; the path is a short one, as sockets in it must have."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.parametrize("kind", [pytest.param("ddp", marks=pytest.mark.long), "async"])
def test_what_the_environment_holds_reaches_no_log_of_ray(project, ray_folder, kind):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["scales"]["sample"]["recipes"]["imagenet"]["defaults"].update(kind=kind, num_workers=2)
    write(project, params)
    said = b""
    for arguments in (
        ("-m", "pipelines.fetch", "imagenet"),
        ("-m", "pipelines.shard", "imagenet"),
        ("-m", "pipelines.train", "imagenet"),
    ):
        done = run(project, *arguments, RAY_TMPDIR=str(ray_folder))
        said += done.stdout + done.stderr
        assert done.returncode == 0, said.decode()
    logs = b"".join(path.read_bytes() for path in ray_folder.glob("ray/session_2*/logs/**/*") if path.is_file())
    assert b"RayTrainWorker" in logs
    assert (b"ServedShard" in logs) == (kind == "async")
    assert [*leaks(ray_folder)] == []
    assert not any(form in said for form in FORMS)


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("origin", "https://me:planted@127.0.0.1:9/archives"),
        ("origin", "s3://planted:planted@bucket/archives"),
        ("files.ILSVRC2012_img_val.tar.url", "https://127.0.0.1:9/a.tar?X-Amz-Signature=planted"),
        ("shard.options.image_base", "https://planted-token@127.0.0.1:9/"),
    ],
)
def test_a_url_with_credentials_is_refused_by_its_key_alone(project, key, url, tmp_path):
    params = yaml.safe_load((project / "params.yaml").read_text())
    data = params["scales"]["sample"]["datasets"]["imagenet"]
    blocks = {"origin": data, "url": data["files"]["ILSVRC2012_img_val.tar"], "image_base": data["shard"]["options"]}
    name = key.rpartition(".")[2]
    blocks[name][name] = url
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    write(tmp_path, params)
    refused = run(tmp_path, "-m", "pipelines.fetch", "imagenet")
    assert refused.returncode == 1
    (line,) = refused.stderr.decode().splitlines()
    assert line.startswith(
        f"error: params.yaml: scales.sample.datasets.imagenet.{key}: a URL here must hold no password"
    )
    assert b"planted" not in refused.stdout + refused.stderr
    assert [*leaks(tmp_path)] == []
