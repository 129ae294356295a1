"""Sharding on the pool of a real Ray cluster of two nodes: the same bytes, the same errors."""

import pytest

from pipelines.samples import SAMPLES
from pipelines.shard import write_shards
from pipelines.sources import SOURCES
from tests.sharding import digests, settings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SETTINGS = settings({"train": 48, "val": 24}, seed=3)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


def test_a_cluster_gives_the_same_bytes_and_the_same_errors(cluster, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    SAMPLES["imagenet"](raw, classes=12, train=4, val=2)
    source = SOURCES["imagenet"]
    write_shards("imagenet", source, raw, tmp_path / "here", SETTINGS, processes=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    write_shards("imagenet", source, raw, tmp_path / "there", SETTINGS)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
    with pytest.raises(ValueError, match=r"img_train\.tar: image n90001357/n90001357_1\.JPEG: too many pixels$"):
        write_shards("imagenet", source, raw, tmp_path / "not", SETTINGS.model_copy(update={"max_pixels": 100}))
    assert not (tmp_path / "not").exists()
    assert not (tmp_path / "not.part").exists()
