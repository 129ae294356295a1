"""Workers that have no shards, only a bucket's name, train the net of those that have the folder."""

from dataclasses import replace

import pytest
import torch

from pipelines.shards import read_index
from pipelines.training.loop import WEIGHTS
from tests.streaming import s3_bucket

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def streaming_cluster(tiny_shards, tmp_path, monkeypatch):
    """A Ray cluster whose processes stream; this one does not."""
    from pipelines.cluster import leave_cluster, use_cluster

    leave_cluster()  # one of an earlier module has another environment
    room = sum(shard.bytes + shard.offsets_bytes for shard in read_index(tiny_shards).splits["train"].shards)
    cache = {"SHARD_CACHE": str(tmp_path / "cache"), "SHARD_CACHE_BYTES": str(room)}
    with s3_bucket(tiny_shards) as (bucket, _):
        with monkeypatch.context() as patch:
            for name, value in {**bucket, **cache}.items():
                patch.setenv(name, value)
            use_cluster({"CPU": 2, "GPU": 0})
        yield tmp_path / "cache"
        leave_cluster()


@pytest.mark.usefixtures("one_thread")
def test_weights_are_those_of_a_run_from_the_folder(make_job, streaming_cluster, tiny_shards, tmp_path):
    from pipelines.training.launch import launch
    from pipelines.training.loop import train_local

    folder = make_job(epochs=3)
    train_local(folder)
    streamed = make_job(kind="async", epochs=3, decode_threads=2, servers={"num_servers": 1})
    launch(replace(streamed, shards=tmp_path / "nowhere" / "tiny", data_digest=read_index(tiny_shards).digest))
    one, other = (torch.load(job.folder / WEIGHTS, weights_only=True) for job in (folder, streamed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len([*streaming_cluster.glob("*/train-*.tar")]) == 3
