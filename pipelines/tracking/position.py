"""How far the sending of a spool has got, as `mlflow-<digest>.json` in it: one file for each store, by its address."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.files import read_json, write_json
from pipelines.tracking.spool import (
    CURVE,
    RUNNING,
    SYSTEM,
    Record,
    curve_of,
    final_rows,
    read_evaluation,
    read_record,
)
from pipelines.training.curve import read_curve


@dataclass
class Sent:
    """How far the sending of a record to a store has got.

    store: its address, which holds no password. opened: params and data set are there. rows: how many are, of the curve
    and of the system metrics. last: the time in the last of the curve's. end: the status and its time that are there.
    evaluated: the time of the evaluation that is.
    """

    id: str
    store: str
    run_id: str = ""
    opened: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    last: float = 0.0
    end: list[Any] = field(default_factory=lambda: [RUNNING, None])
    evaluated: float = 0.0


def read_sent(spool: Path, record: Record, store: str) -> Sent:
    """How far the sending to a store has got: nowhere yet, where what is known is of another record."""
    path = sent_file(spool, store)
    if path.exists():
        sent = Sent(**read_json(path))
        if (sent.id, sent.store) == (record.id, store):
            return sent
    return Sent(record.id, store)


def write_sent(spool: Path, sent: Sent) -> None:
    """Remember how far the sending has got."""
    write_json(sent_file(spool, sent.store), asdict(sent))


def sent_file(spool: Path, store: str) -> Path:
    """Where that is remembered. store: an address without a password: what it is digested to could be guessed."""
    return spool / f"mlflow-{hashlib.sha256(store.encode()).hexdigest()[:12]}.json"


def was_undone(sent: Sent, curve: Path, rows: list[dict[str, Any]]) -> bool:
    """Whether training went back behind a row that is sent: each row carries the time it was made."""
    count = sent.rows.get(CURVE, 0)
    return curve.exists() and count > 0 and (count > len(rows) or rows[count - 1]["time"] != sent.last)


def has_news(spool: Path, store: str) -> bool:
    """Whether there is anything in a spool that the store lacks, as far as is remembered here."""
    record = read_record(spool)
    if record is None:
        return False
    sent, curve, evaluation = read_sent(spool, record, store), curve_of(spool, record), read_evaluation(spool)
    rows = read_curve(curve)
    return (
        not sent.opened
        or was_undone(sent, curve, rows)
        or len(final_rows(record, rows)) > sent.rows.get(CURVE, 0)
        or len(read_curve(spool / SYSTEM)) > sent.rows.get(SYSTEM, 0)
        or sent.end != [record.status, record.ended]
        or (evaluation is not None and evaluation["time"] != sent.evaluated)
    )
