"""Curves: means over the steps between rows, torn lines left out, lost steps dropped."""

import json

import pytest
import torch

from pipelines.training.curve import Curve, read_curve


def test_rows_are_means_since_the_row_before(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl", every=2, last=5, step=0)
    for step, loss in enumerate([4.0, 2.0, 1.0, 0.0, 9.0], start=1):
        curve.add(step, 8, {"loss": torch.tensor(loss), "learning_rate": 0.1})
    curve.close()
    rows = read_curve(tmp_path / "curve.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 3.0), (4, 0.5), (5, 9.0)]
    assert all(row["images_per_second"] > 0 and row["time"] > 1e9 for row in rows)


def test_a_resumed_curve_drops_the_steps_that_will_be_made_again(tmp_path):
    path = tmp_path / "curve.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "loss": step}) + "\n" for step in range(1, 8)) + '{"step": 8, "lo'
    )
    Curve(path, every=1, last=100, step=5).add(6, 8, {"loss": -1.0})
    rows = read_curve(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] == -1.0


def test_reading_stops_at_a_step_and_at_a_torn_line(tmp_path):
    path = tmp_path / "curve.jsonl"
    assert read_curve(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in read_curve(path)] == [1, 2]
    assert [row["step"] for row in read_curve(path, up_to_step=1)] == [1]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "curve.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="Unterminated"):
        read_curve(tmp_path / "curve.jsonl")
