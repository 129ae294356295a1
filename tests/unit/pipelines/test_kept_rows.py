"""Rows that DVC has removed come back: from where they are kept, and from DVC's cache."""

import json
import subprocess
import sys

import pytest
import yaml

from pipelines import kept_rows, paths
from pipelines.training import rows

OUTPUT = paths.results("small", "first") / "train"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").write_text("w")
    (tmp_path / "curve.jsonl").write_text("c")
    return tmp_path


def finish(project, name, fingerprint):
    rows.finish([project / "weights.pt", project / "curve.jsonl"], {"fingerprint": fingerprint}, OUTPUT / name)


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_a_kept_row_comes_back_as_it_was(project):
    finish(project, "one", "a")
    kept_rows.keep("small", OUTPUT / "one")
    remove(OUTPUT)
    kept_rows.put_back("small", [OUTPUT / "one", OUTPUT / "two"])
    assert rows.is_finished(OUTPUT / "one", "a")
    assert {path.name for path in (OUTPUT / "one").iterdir()} == {"weights.pt", "curve.jsonl", "run.json"}
    assert not (OUTPUT / "two").exists()


def test_a_row_that_is_there_is_left_alone(project):
    finish(project, "one", "a")
    kept_rows.keep("small", OUTPUT / "one")
    finish(project, "one", "b")
    kept_rows.put_back("small", [OUTPUT / "one"])
    assert rows.is_finished(OUTPUT / "one", "b")


def test_the_newest_of_a_rows_versions_is_kept(project):
    for fingerprint in ("a", "b"):
        finish(project, "one", fingerprint)
        kept_rows.keep("small", OUTPUT / "one")
    remove(OUTPUT)
    kept_rows.put_back("small", [OUTPUT / "one"])
    assert rows.is_finished(OUTPUT / "one", "b")


def dvc(*command):
    subprocess.run([sys.executable, "-m", "dvc", *command], check=True, capture_output=True)


@pytest.mark.slow
def test_dvcs_own_cache_gives_a_row_back_and_not_one_that_it_lacks(project):
    """A real DVC, in the way of a laptop after `dvc pull`: the rows are in the cache, and nowhere else."""
    for name in ("one", "two"):
        (project / "weights.pt").unlink()  # the row before has it too
        (project / "weights.pt").write_text(name)
        finish(project, name, f"of {name}")
    stage = {"cmd": "true", "deps": ["weights.pt"], "outs": [OUTPUT.as_posix()]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train_first": stage}}))
    dvc("init", "--no-scm")
    dvc("commit", "--force")
    remove(OUTPUT)
    cached = project / ".dvc/cache/files/md5"
    (torn,) = (path for path in cached.rglob("*") if path.is_file() and path.read_bytes() == b"two")
    torn.unlink()
    kept_rows.put_back("small", [OUTPUT / "one", OUTPUT / "two"])
    assert rows.is_finished(OUTPUT / "one", "of one")
    assert (OUTPUT / "one" / "weights.pt").read_text() == "one"
    assert not (OUTPUT / "two").exists()


def test_a_lock_file_of_other_outputs_gives_nothing(project):
    lock = {"schema": "2.0", "stages": {"other": {"cmd": "true", "outs": [{"path": "x", "md5": "0.dir"}]}}}
    (project / "dvc.lock").write_text(json.dumps(lock))
    kept_rows.put_back("small", [OUTPUT / "one"])
    assert not OUTPUT.exists()
