"""What is to be trained, in which order, from what: rows on the disk against params.yaml, with nothing trained."""

import json
import shutil

import pytest
import torch

from pipelines import paths
from pipelines.config import Params, load
from pipelines.plan import make_plan, trained
from pipelines.section import parsed
from pipelines.shards import read_index
from pipelines.training.job import net_spec
from tasks.nets import build


@pytest.fixture
def project(tiny_shards, tmp_path, monkeypatch):
    """Two tables on the tiny data: `first` with a teacher, `second` whose rows start from it or learn from it."""
    whole = load()
    defaults = whole.scales["sample"].recipes["imagenet"].defaults | {"resolution_divisor": 2}
    row = {"net": "mobilenet", "width": 0.25, "resolution": 64}
    table = {"task": "imagenet", "dataset": "tiny", "test": {"dataset": "tiny", "split": "val"}, "num_outputs": 1000}
    dataset = whole.scales["sample"].datasets["imagenet"].model_dump()
    values = {
        "scale": "small",
        "tables": {
            "first": {
                **table,
                "runs": {"pupil": {**row, "teacher": "master"}, "master": dict(row), "other": dict(row)},
            },
            "second": {**table, "runs": {"tuned": {**row, "init_from": "other"}, "far": {**row, "teacher": "master"}}},
        },
        "scales": {
            "small": {
                "datasets": {"tiny": dataset},
                "recipes": {name: {"defaults": defaults, "runs": {}} for name in ("first", "second")},
            }
        },
    }
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "shards", lambda scale, name: tiny_shards)
    return values


def params(project, **changes):
    for run, values in changes.items():
        for table in project["tables"].values():
            if run in table["runs"]:
                table["runs"][run].update(values)
    return parsed(Params, project, "")


def finish(plan, *names, seed=0):
    """Leave rows as if they had been trained."""
    for name in names:
        torch.manual_seed(seed)
        folder = plan.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(build(net_spec(plan.runs[name], 3)).state_dict(), folder / "weights.pt")
        record = {
            "fingerprint": plan.fingerprint(name),
            "run": plan.runs[name].model_dump(),
            "data_digest": plan.index.digest,
            "num_outputs": 3,
            "classes": ["r", "g", "b"],
        }
        (folder / "run.json").write_text(json.dumps(record))


def plan_of(project, table="first", **changes):
    return make_plan(params(project, **changes), "small", table)


def test_rows_that_others_need_come_first(project):
    plan = plan_of(project)
    assert list(plan.runs).index("master") < list(plan.runs).index("pupil")
    assert set(plan.unfinished(None)) == {"master", "pupil", "other"}


def test_a_row_is_trained_again_when_what_it_needs_is(project):
    plan = plan_of(project)
    finish(plan, "master", "other")
    finish(plan, "pupil")
    assert plan.unfinished(None) == []
    assert plan_of(project, master={"seed": 9}).unfinished(None) == ["master", "pupil"]
    plan = plan_of(project, master={"seed": 1})
    assert plan.unfinished(None) == []
    finish(plan, "master", seed=4)  # other weights, though of the same values
    assert plan.unfinished(None) == ["pupil"]


def test_across_tables_too(project):
    finish(plan_of(project), "master", "other")
    plan = plan_of(project, "second")
    finish(plan, "tuned", "far")
    assert plan.unfinished(None) == []
    finish(plan_of(project), "other", seed=4)
    assert plan.unfinished(None) == ["tuned"]
    finish(plan_of(project), "master", seed=4)
    assert set(plan.unfinished(None)) == {"tuned", "far"}


def test_how_a_teacher_is_asked_changes_no_fingerprint(project):
    plan = plan_of(project)
    finish(plan, "master")
    before = plan.fingerprint("pupil")
    assert plan_of(project, pupil={"teacher_outputs": "step"}).fingerprint("pupil") == before
    assert plan_of(project, pupil={"epochs": 3}).fingerprint("pupil") != before


def test_one_run_alone_needs_its_origin(project):
    plan = plan_of(project)
    with pytest.raises(ValueError, match="run pupil needs master, which is not trained; run: .* first --run master"):
        plan.unfinished("pupil")
    assert plan.unfinished("master") == ["master"]
    finish(plan, "master")
    assert plan.unfinished("pupil") == ["pupil"]
    with pytest.raises(ValueError, match="run 'nobody' is unknown; table first has: "):
        plan.unfinished("nobody")


def test_what_another_table_lacks_is_named_with_its_command(project):
    with pytest.raises(ValueError, match="other: there is no such run; run: python -m pipelines.train first"):
        plan_of(project, "second")
    plan = plan_of(project)
    finish(plan, "master", "other")
    plan_of(project, "second")
    with pytest.raises(ValueError, match="other: it was trained with other params; run: "):
        plan_of(project, "second", other={"seed": 3})


def test_runs_that_need_each_other_are_refused(project):
    with pytest.raises(ValueError, match="table first: runs need each other: .*master.* <- "):
        plan_of(project, master={"init_from": "pupil"})


def test_a_file_of_weights_that_does_not_exist_is_refused(project, tmp_path):
    with pytest.raises(ValueError, match=r"run other: init_from: .*gone\.pt does not exist"):
        plan_of(project, other={"init_from": str(tmp_path / "gone.pt")})


def test_nets_that_do_not_fit_are_refused_before_anything_is_trained(project):
    plan = plan_of(project, pupil={"init_from": "master", "width": 0.5})
    with pytest.raises(ValueError, match="run pupil: init_from master: 'body.conv0.conv.weight' is "):
        plan.check("pupil")
    plan = plan_of(project, pupil={"init_from": None}, master={"net": "inception_v3", "width": 1.0})
    with pytest.raises(ValueError, match="teacher master: input size 32 is too small for inception_v3"):
        plan.check("pupil")
    with pytest.raises(ValueError, match="input size 32 is too small for inception_v3"):
        plan.check("master")


def test_a_job_names_what_its_workers_need(project):
    plan = plan_of(project, pupil={"init_from": "other"})
    finish(plan, "master", "other")
    job = plan.job("pupil")
    assert job.initial.weights == (plan.folder("other") / "weights.pt").resolve()
    assert job.initial.keep_head
    assert job.teacher.weights == (plan.folder("master") / "weights.pt").resolve()
    assert job.teacher.teaching.stored.suffix == ".npy"
    assert job.num_outputs == 3 and job.num_samples == 96
    assert plan_of(project, pupil={"teacher_outputs": "step"}).job("pupil").teacher.teaching.stored is None
    finish(plan, "master", seed=2)
    assert plan.job("pupil").teacher.teaching.stored != job.teacher.teaching.stored


def test_a_trained_run_must_be_of_the_shards_that_are_there(project, monkeypatch, tiny_shards, tmp_path):
    plan = plan_of(project)
    finish(plan, "master")
    assert trained(plan.params, "small", "master")["classes"] == ["r", "g", "b"]
    other = tmp_path / "shards"
    shutil.copytree(tiny_shards, other)
    index = read_index(other)
    changed = type(index)(index.dataset, ("x", "y", "z"), index.splits, {}, {})
    (other / "index.json").write_bytes(changed.to_json())
    monkeypatch.setattr(paths, "shards", lambda scale, name: other)
    with pytest.raises(ValueError, match="master: it was trained on other shards"):
        trained(plan.params, "small", "master")
