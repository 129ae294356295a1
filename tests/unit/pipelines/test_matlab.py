"""MATLAB files: what SciPy reads of sound ones, and what is refused before SciPy sees it."""

import io

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


def test_damage_and_other_formats_are_named():
    whole = mat(labels=np.arange(100))
    for data in (b"", b"MATLAB", whole[:-20], b"<html>" * 50, whole[:140] + b"\0" * 9 + whole[149:]):
        with pytest.raises(ValueError, match=r"^x.mat is not a MATLAB file: "):
            read_mat(data, "x.mat")
