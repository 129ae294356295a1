"""A machine that streams the tiny data set from a server, through a cache of its own."""

import pytest

from pipelines.shards import read_index
from tests.file_server import Served, serving


@pytest.fixture(scope="module")
def index(tiny_shards):
    return read_index(tiny_shards)


@pytest.fixture
def server(tiny_shards):
    with serving() as running:
        for path in tiny_shards.iterdir():
            running.files[f"/tiny/{path.name}"] = Served(path.read_bytes())
        yield running


@pytest.fixture
def streamed(server, tmp_path, monkeypatch):
    """Has this machine stream from `server`; the function sets the bound to so many of the largest shards."""

    def bound(shards: float) -> int:
        largest = max(len(served.body) for served in server.files.values()) + 10_000
        monkeypatch.setenv("SHARD_CACHE_BYTES", str(int(shards * largest)))
        return int(shards * largest)

    monkeypatch.setenv("SHARDS_URL", server.url)
    monkeypatch.setenv("SHARD_CACHE", str(tmp_path / "cache"))
    bound(100)
    return bound
