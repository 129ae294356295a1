"""The shards' format, with `tarfile` as the oracle of what is written and every damage that verification must see."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.shards import INDEX, OFFSETS, Index, Shard, Split, Stored, read_index, read_offsets, verify, write_shard

PAYLOADS = st.lists(st.tuples(st.binary(max_size=2000), st.binary(max_size=600)), max_size=12)


def stored(payloads: list[tuple[bytes, bytes]], first: int = 0) -> list[Stored]:
    return [Stored(key, image, fields, key + 1, key + 2) for key, (image, fields) in enumerate(payloads, start=first)]


def shards(folder: Path) -> Index:
    first = write_shard(folder, "train-000000", stored([(b"a" * 900, b"{}"), (b"b" * 512, b"{}")]))
    second = write_shard(folder, "train-000001", stored([(b"c", b"{}")], first=2))
    index = Index("toy", ("cat", "dog \u2603"), {"train": Split(3, (first, second))}, {"truncated": 1}, {})
    (folder / INDEX).write_bytes(index.to_json())
    return index


@settings(max_examples=40, deadline=None)
@given(payloads=PAYLOADS.filter(len), first=st.sampled_from([0, 7, 99_999_980]))
def test_a_shard_is_what_tarfile_writes(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[tuple[bytes, bytes]], first: int
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    samples = stored(payloads, first)
    shard = write_shard(folder, "train-000000", samples)
    oracle = io.BytesIO()
    with tarfile.open(fileobj=oracle, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for end, data in (("jpg", sample.image), ("json", sample.fields)):
                info = tarfile.TarInfo(f"{sample.key:08d}.{end}")
                info.size, info.mode = len(data), 0o444
                tar.addfile(info, io.BytesIO(data))
    data = (folder / "train-000000.tar").read_bytes()
    assert data == oracle.getvalue()
    assert (shard.samples, shard.bytes, shard.sha256) == (len(samples), len(data), hashlib.sha256(data).hexdigest())
    offsets = np.load(folder / shard.offsets_name)
    assert offsets.dtype == np.int64
    assert offsets.shape == (len(samples), len(OFFSETS))
    for (at, size, fields_at, fields_size, height, width), sample in zip(offsets.tolist(), samples, strict=True):
        assert data[at : at + size] == sample.image
        assert data[fields_at : fields_at + fields_size] == sample.fields
        assert (height, width) == (sample.height, sample.width)
    verify(folder, shard)


def test_an_index_comes_back_as_it_was_written(tmp_path: Path) -> None:
    index = shards(tmp_path)
    assert read_index(tmp_path) == index
    assert index.digest == hashlib.sha256((tmp_path / INDEX).read_bytes()).hexdigest()
    for shard in index.splits["train"].shards:
        verify(tmp_path, shard)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("splits.train.shards.0.name", "../../etc/passwd-000000.tar", "name"),
        ("splits.train.shards.0.name", "/train-000000.tar", "name"),
        ("splits.train.shards.0.name", "train-000000.tar\n", "name"),
        ("splits.train.shards.0.sha256", "0" * 63, "sha256"),
        ("splits.train.shards.0.bytes", "900", "bytes"),
        ("splits.train.shards.0.samples", 3, "3 samples are claimed, but the shards hold 4"),
        ("splits.train.samples", 2, "2 samples are claimed, but the shards hold 3"),
        ("splits.train.shards.0.more", 1, "more"),
        ("classes", "cat", "classes"),
        ("skipped.truncated", -1, "skipped.truncated"),
    ],
)
def test_an_index_that_is_not_ours_is_refused(tmp_path: Path, key: str, value: object, says: str) -> None:
    shards(tmp_path)
    path = tmp_path / INDEX
    root = node = json.loads(path.read_text())
    *parents, last = key.split(".")
    for part in parents:
        node = node[int(part) if isinstance(node, list) else part]
    node[last] = value
    path.write_text(json.dumps(root))
    with pytest.raises(ValueError, match=rf"index\.json: .*{says}"):
        read_index(tmp_path)


def test_an_absent_cut_or_edited_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index\.json does not exist"):
        read_index(tmp_path)
    shards(tmp_path)
    text = (tmp_path / INDEX).read_text()
    for cut in range(0, len(text) - 1, 29):
        (tmp_path / INDEX).write_text(text[:cut])
        with pytest.raises(ValueError, match=r"index\.json"):
            read_index(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(json.loads(text)))
    with pytest.raises(ValueError, match="was edited"):
        read_index(tmp_path)


def test_every_damage_to_a_shard_is_noticed(tmp_path: Path) -> None:
    index = shards(tmp_path)
    shard: Shard = index.splits["train"].shards[0]
    tar, offsets = tmp_path / shard.name, tmp_path / shard.offsets_name
    for path in (tar, offsets):
        whole = path.read_bytes()
        for position in range(0, len(whole), 97):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            with pytest.raises(ValueError, match=rf"{path.name} has sha256 .* corrupt"):
                verify(tmp_path, shard)
        path.write_bytes(whole[:-512])
        with pytest.raises(ValueError, match=path.name):
            verify(tmp_path, shard)
        path.unlink()
        with pytest.raises(ValueError, match=rf"{path.name} does not exist"):
            verify(tmp_path, shard)
        path.write_bytes(whole)
    verify(tmp_path, shard)
    with pytest.raises(ValueError, match=r"train-000001\.tar has 10240 bytes, the index says 1"):
        verify(tmp_path, dataclasses.replace(index.splits["train"].shards[1], bytes=1))


def test_swapped_shards_are_noticed(tmp_path: Path) -> None:
    first = write_shard(tmp_path, "val-000000", stored([(b"a", b"{}")]))
    write_shard(tmp_path, "val-000001", stored([(b"b", b"{}")]))
    (tmp_path / "val-000001.tar").replace(tmp_path / "val-000000.tar")
    with pytest.raises(ValueError, match=r"val-000000\.tar has sha256"):
        verify(tmp_path, first)


def test_threads_take_turns_at_parsing_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, under_way, seen = shards(tmp_path), [], []

    def load(path: Path, **options: object) -> object:
        under_way.append(path)
        time.sleep(0.01)
        seen.append(len(under_way))
        under_way.remove(path)
        return numpy_load(path, **options)

    numpy_load = np.load
    monkeypatch.setattr(np, "load", load)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda shard: read_offsets(tmp_path, shard), 4 * index.splits["train"].shards))
    assert [len(offsets) for offsets in found] == 4 * [2, 1]
    assert seen == [1] * 8
