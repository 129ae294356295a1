"""MATLAB files: what SciPy reads of sound ones, and what is refused before SciPy sees it."""

import io
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from pipelines.matlab import read_mat


def mat(compressed: bool = True, **variables: object) -> bytes:
    file = io.BytesIO()
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_variables_come_as_they_are(compressed):
    data = mat(compressed, labels=np.array([[1], [2]]), name="abc")
    assert read_mat(data, "x.mat")["labels"].tolist() == [1, 2]
    assert read_mat(data, "x.mat", squeeze=False)["labels"].tolist() == [[1], [2]]


@pytest.mark.parametrize("compressed", [True, False])
def test_a_bomb_is_refused_before_it_is_unpacked(compressed):
    data = mat(compressed, zeros=np.zeros(2_000_000, np.uint8))
    with pytest.raises(ValueError, match=r"^x.mat unpacks to more than 1,000,000 bytes$"):
        read_mat(data, "x.mat", max_bytes=1_000_000)
    assert len(read_mat(data, "x.mat", max_bytes=3_000_000)["zeros"]) == 2_000_000


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("value", [np.zeros((1, 3), np.uint8), np.array([["abc"]], object), {"a": 1}, "abc"])
def test_what_arrays_only_claim_to_hold_is_not_allocated(compressed, value):
    """The dimensions are those of 400 million values, the bytes those of a few."""
    data = bytearray(mat(False, x=value))
    at = 128 + 8 + 16 + 8  # header, the array's tag, its flags, the tag of its dimensions
    assert data[at - 8 : at] == (5).to_bytes(4, "little") + (8).to_bytes(4, "little")
    data[at : at + 8] = (1).to_bytes(4, "little") + (400_000_000).to_bytes(4, "little")
    if compressed:
        body = zlib.compress(bytes(data[128:]))
        data[128:] = (15).to_bytes(4, "little") + len(body).to_bytes(4, "little") + body
    with pytest.raises(ValueError, match=r"^x.mat claims to have 400,0\d\d,\d\d\d values, allowed are 10,000,000$"):
        read_mat(bytes(data), "x.mat")


def test_claims_within_cells_are_seen_too():
    inner = np.empty((1, 2), object)
    inner[0] = [np.zeros((1, 3)), np.zeros((1, 5))]
    data = mat(False, x=inner)
    assert len(read_mat(data, "x.mat")["x"]) == 2
    at = data.rindex((1).to_bytes(4, "little") + (5).to_bytes(4, "little"))
    data = data[: at + 4] + (300_000_000).to_bytes(4, "little") + data[at + 8 :]
    with pytest.raises(ValueError, match="claims to have 300,000,0"):
        read_mat(data, "x.mat")


def test_damage_and_other_formats_are_named():
    whole = mat(labels=np.arange(100))
    for data in (b"", b"MATLAB", whole[:-20], b"<html>" * 50, whole[:140] + b"\0" * 9 + whole[149:]):
        with pytest.raises(ValueError, match=r"^x.mat is not a MATLAB file: "):
            read_mat(data, "x.mat")
