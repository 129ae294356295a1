"""What tests of streamed shards read, and what they see of the cache and of the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipelines.training.reader import training_batches
from tasks.augment import Bounds

BOUNDS = Bounds(0.5, 1.0, 0.75, 1.33, 0.5, 0.1, 0.5, 1.5)
NO_FOLDER = Path("tiny")  # of a machine that has none, but streams


def labels_of(fields):
    return {"label": torch.tensor([sample["label"] for sample in fields])}


def train(folder, **changes):
    options = {
        "size": 16, "batch_size": 8, "seed": 3, "rank": 0, "world": 1, "start_sample": 0, "num_samples": 192,
        "bounds": BOUNDS, "antialias": False, "threads": 0, "block_shards": 1, "targets": labels_of,
    }  # fmt: skip
    return training_batches(folder, "train", **{**options, **changes})


def same(ours, theirs):
    pairs = [*zip(ours, theirs, strict=True)]
    assert all(torch.equal(one.images, other.images) for one, other in pairs)
    assert all(torch.equal(one.targets["label"], other.targets["label"]) for one, other in pairs)
    return len(pairs)


def from_folder(monkeypatch, make):
    with monkeypatch.context() as patch:
        patch.delenv("SHARDS_URL")
        return list(make())


def cached(tmp_path):
    """What lies in the cache: names of finished shards' files, and of others but the locks."""
    names = {path.name for path in (tmp_path / "cache").glob("*/*") if path.suffix != ".lock"} - {"index.json"}
    finished = {name for name in names if name.endswith((".tar", ".npy"))}
    return finished, names - finished


def bytes_held(tmp_path):
    return sum(
        path.stat().st_size for path in (tmp_path / "cache").glob("*/*") if path.suffix in (".tar", ".npy", ".part")
    )


def asked(server):
    return Counter(request.path.removeprefix("/tiny/") for request in server.requests)


@contextmanager
def s3_bucket(shards: Path) -> Iterator[tuple[dict[str, str], Any]]:
    """A local S3 server with a folder's shards at s3://pictures/shards/tiny.

    The environment of a machine that streams from it but for the cache, and the server's client.
    """
    import boto3  # here: they take a second that other tests need not wait
    from moto.server import ThreadedMotoServer

    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    endpoint, key = f"http://{host}:{port}", {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **key)
    client.create_bucket(Bucket="pictures")
    for path in shards.iterdir():
        client.put_object(Bucket="pictures", Key=f"shards/tiny/{path.name}", Body=path.read_bytes())
    credentials = {name.upper(): value for name, value in key.items()}
    names = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "SHARDS_URL": "s3://pictures/shards/"}
    try:
        yield names | credentials, client
    finally:
        s3.stop()
