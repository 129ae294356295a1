"""Runs that MLflow is told of in tests, and what it is to have of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np

from pipelines import tracking
from pipelines.tracking.spool import read_evaluation, read_record
from pipelines.training.curve import Curve, read_curve
from tests.mlflow_server import Stack

# What is another's in the copy c of the row t.
COPIED = {
    "run_uuid": "c.run_uuid",
    "runs.name": "c.name",
    "runs.start_time": "t.start_time + c.number + 1",
    "tags.value": "CASE t.key WHEN 'mlflow.runName' THEN c.name WHEN 'spool' THEN c.run_uuid ELSE t.value END",
    "params.value": "CASE t.key WHEN 'width' THEN c.width WHEN 'resolution' THEN c.size ELSE t.value END",
    "metrics.value": "CASE t.key WHEN 'eval/top1' THEN c.top1 ELSE t.value END",
    "latest_metrics.value": "CASE t.key WHEN 'eval/top1' THEN c.top1 ELSE t.value END",
}
NET = {"net": "mobilenet", "width": 0.25, "num_classes": 5}


def make_run(folder: Path, experiment: str, width: float, resolution: int, weights: Path | None = None) -> Path:
    """The spool of a run that is trained, evaluated and told to nobody; its curve has 100 rows."""
    spool = folder / "mlflow"
    folder.mkdir(parents=True)
    tracking.begin(
        spool,
        experiment=experiment,
        name=folder.name,
        params={"width": width, "resolution": resolution, "optimizer": {"decay": 0.9}},
        tags={"kind": "async", "scale": "sample"},
        data=tracking.Data("imagenet", "d" * 64, "data/sample/shards/imagenet"),
        curve=folder / "curve.jsonl",
        commit_steps=5,
    )
    curve = Curve(folder / "curve.jsonl", 1, 10**9, 0)
    for step in range(1, 101):
        curve.add(step, 32, {"loss": 1 / step, "learning_rate": 0.1})
    curve.close()
    model = tracking.Model(weights, task="imagenet", net=NET, input_size=32) if weights else None
    tracking.finish(spool, metrics={"mult_adds": 1e6 * width}, histograms={"staleness": {0: 9, 1: 2}}, model=model)
    (folder / "curve.png").write_bytes(picture(width))
    tracking.log_evaluation(spool, {"top1": 0.3 + width / 3}, [folder / "curve.png"])
    return spool


def picture(shade: float) -> bytes:
    pixels = np.full((240, 320, 3), 255, np.uint8)
    pixels[:, : int(320 * shade)] = (0, 128, 255)
    return cv2.imencode(".png", pixels)[1].tobytes()


def points_of(spool: Path) -> Counter[tuple[str, int, int, float]]:
    """Key, step, milliseconds and value of every metric of a run, as its files have them."""
    record, rows, evaluation = read_record(spool), read_curve(spool.parent / "curve.jsonl"), read_evaluation(spool)
    found = [
        (f"train/{key}", row["step"], int(row["time"] * 1000), value)
        for row in rows
        for key, value in row.items()
        if key not in ("step", "time")
    ]
    end = int(record.ended * 1000)
    found += [("mult_adds", 100, end, record.metrics["mult_adds"]), ("staleness", 0, end, 9), ("staleness", 1, end, 2)]
    found.append(("eval/top1", 100, int(evaluation["time"] * 1000), evaluation["metrics"]["top1"]))
    return Counter(found)


def copy_run(stack: Stack, run_id: str, copies: list[tuple[str, float, int, float]]) -> list[str]:
    """Make copies of a run, its curve and all; their ids. copies: name, width, resolution and top1 of each."""
    import psycopg

    ids = [uuid4().hex for _ in copies]
    rows = [(number, ids[number], *map(str, row[:3]), row[3]) for number, row in enumerate(copies)]
    with psycopg.connect(**stack.database) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP TABLE copies (number int, run_uuid text, name text, width text, size text, top1 float)"
        )
        cursor.executemany("INSERT INTO copies VALUES (%s, %s, %s, %s, %s, %s)", rows)
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            cursor.execute("SELECT column_name FROM information_schema.columns WHERE table_name = %s", [table])
            columns = [name for (name,) in cursor]
            values = ", ".join(COPIED.get(f"{table}.{name}", COPIED.get(name, f"t.{name}")) for name in columns)
            cursor.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} t, copies c "
                "WHERE t.run_uuid = %s",
                [run_id],
            )
    return ids
