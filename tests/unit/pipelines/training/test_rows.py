"""Finished rows appear whole, and what they depend on decides whether they are kept."""

import json
import os

import pytest

from pipelines.training.rows import code_digest, fingerprint, finish, read_record


def test_a_row_appears_whole_and_replaces_the_one_before(tmp_path):
    folder = tmp_path / "train" / "row"
    for number in (1, 2):
        (tmp_path / "weights.pt").write_text(str(number))
        finish([tmp_path / "weights.pt"], {"fingerprint": str(number)}, folder)
        assert read_record(folder) == {"fingerprint": str(number)}
        assert (folder / "weights.pt").read_text() == str(number)
    assert os.listdir(folder.parent) == ["row"]


def test_a_row_cut_short_is_not_there_and_the_next_try_succeeds(tmp_path):
    folder = tmp_path / "row"
    (tmp_path / ".row.fresh").mkdir()
    (tmp_path / ".row.fresh" / "weights.pt").write_text("torn")
    assert read_record(folder) is None
    (tmp_path / "weights.pt").write_text("whole")
    finish([tmp_path / "weights.pt"], {"fingerprint": "a"}, folder)
    assert (folder / "weights.pt").read_text() == "whole"


def test_a_missing_file_leaves_the_row_before(tmp_path):
    folder = tmp_path / "row"
    (tmp_path / "weights.pt").write_text("1")
    finish([tmp_path / "weights.pt"], {"fingerprint": "1"}, folder)
    with pytest.raises(FileNotFoundError):
        finish([tmp_path / "weights.pt", tmp_path / "curve.jsonl"], {"fingerprint": "2"}, folder)
    assert read_record(folder) == {"fingerprint": "1"}


CODE = '''"""About."""
def add(one, two):
    """Sum."""
    return one + two  # why
'''


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (CODE.replace("About", "Otherwise").replace("Sum", "The sum").replace("# why", "# because"), True),
        (CODE.replace("one + two", "one  +  two\n\n"), True),
        (CODE.replace("one + two", "one - two"), False),
        (CODE.replace("def add(one, two)", "def add(one, two=1)"), False),
    ],
)
def test_the_code_digest_sees_code_and_not_words(tmp_path, changed, same):
    file = tmp_path / "code.py"
    file.write_text(CODE)
    before = code_digest([file])
    file.write_text(changed)
    assert (code_digest([file]) == before) is same


def test_the_fingerprint_is_of_values_not_of_their_order():
    one = fingerprint(run={"a": 1, "b": 2.5}, data="x")
    assert one == fingerprint(data="x", run=json.loads('{"b": 2.5, "a": 1}'))
    assert one != fingerprint(run={"a": 1, "b": 2.5}, data="y")
