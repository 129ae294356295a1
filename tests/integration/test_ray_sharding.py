"""Sharding on the pool of a real Ray cluster of two nodes: the same bytes, the same errors."""

import pytest

from pipelines.config import Sharding
from pipelines.samples import SAMPLES
from pipelines.shard import write_shards
from pipelines.sources import SOURCES

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


def settings(**changes):
    values = {
        "seed": 3,
        "samples_per_shard": 20,
        "stored_short_side": None,
        "max_pixels": 10**6,
        "max_bytes": 10**6,
        "bad_images": "error",
        "samples": {"train": 48, "val": 24},
    }
    return Sharding.model_validate({**values, **changes})


def test_a_cluster_gives_the_same_bytes_and_the_same_errors(cluster, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    SAMPLES["imagenet"](raw, classes=12, train=4, val=2)
    source = SOURCES["imagenet"]
    write_shards("imagenet", source, raw, tmp_path / "here", settings(), processes=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    write_shards("imagenet", source, raw, tmp_path / "there", settings())
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there"))
    assert one == other
    with pytest.raises(ValueError, match=r"img_train\.tar: image n90001357/n90001357_1\.JPEG: too many pixels$"):
        write_shards("imagenet", source, raw, tmp_path / "not", settings(max_pixels=100))
    assert not (tmp_path / "not").exists()
    assert not (tmp_path / "not.part").exists()
