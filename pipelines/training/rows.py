"""Durable rows: a finished run is a folder with a fingerprint of everything it depends on.

`results/<scale>/<table>/train/<run>/` holds `weights.pt`, `curve.jsonl` and `run.json`. It appears by one rename when
the run is done, so that a killed stage leaves finished rows and nothing half-made; a row whose fingerprint still fits
is not trained again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.files import link, write_json

RECORD = "run.json"


def code_digest(files: Iterable[Path]) -> str:
    """A digest of Python files that comments, docstrings and formatting do not change."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.as_posix()}\n{_without_words(file.read_text(), str(file))}\n".encode())
    return digest.hexdigest()


@cache  # a process may plan many times over the same files, and parsing them takes longer than all else
def _without_words(text: str, filename: str) -> str:
    tree = ast.parse(text, filename=filename)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return ast.dump(tree)


def fingerprint(**parts: Any) -> str:
    """A digest of named JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """What a finished run says of itself; None where there is no finished run."""
    path = folder / RECORD
    record: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return record


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether a run that is finished there is the one of this fingerprint."""
    record = read_record(folder)
    return record is not None and record["fingerprint"] == fingerprint


def finish(files: Iterable[Path], record: dict[str, Any], folder: Path) -> None:
    """Put a run's files and its record into place as one folder, replacing what an earlier run left there.

    The files stay where they are as well, for a next try, until the caller removes them.
    """
    fresh, stale = (folder.with_name(f".{folder.name}.{word}") for word in ("fresh", "stale"))
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    for file in files:
        link(file, fresh / file.name)
    write_json(fresh / RECORD, record)
    if folder.exists():
        folder.replace(stale)
    fresh.replace(folder)
    shutil.rmtree(stale, ignore_errors=True)
