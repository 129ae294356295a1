"""What is to be trained, in which order, from what: rows on the disk against params.yaml, with nothing trained."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from random import Random

import pytest
import torch

from pipelines import paths, train
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


def test_what_a_row_takes_goes_by_its_net_its_input_and_its_epochs(project):
    def work(**values):
        return train.work_of(plan_of(project, other=values), "other")

    assert work(epochs=6) == pytest.approx(3 * work(epochs=2))
    assert work(epochs=2, resolution=128) > 2 * work(epochs=2, resolution=64)


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


@pytest.mark.parametrize("seed", range(5))
def test_of_any_graph_origins_come_first_and_all_that_follows_from_a_change_is_trained_again(project, seed):
    random = Random(seed)
    names = [f"run{number}" for number in range(7)]
    needs = {}
    for number, name in enumerate(names):
        wanted = random.sample(names[:number], min(number, random.randrange(3)))
        needs[name] = dict(zip(("init_from", "teacher"), wanted, strict=False))
    rows = project["tables"]["first"]["runs"]
    rows.clear()
    del project["tables"]["second"]["runs"]["tuned"], project["tables"]["second"]["runs"]["far"]
    for name in random.sample(names, 7):
        rows[name] = {"net": "mobilenet", "width": 0.25, "resolution": 64, **needs[name]}
    plan = plan_of(project)
    order = list(plan.runs)
    assert sorted(order) == names
    assert all(order.index(wanted) < order.index(name) for name in names for wanted in needs[name].values())
    assert plan.unfinished(None) == order
    finish(plan, *order)
    assert plan.unfinished(None) == []
    stale = set(random.sample(names, 2))
    plan = plan_of(project, **{name: {"seed": 9} for name in stale})
    for name in names:  # in an order in which each comes after what it needs
        stale |= {name} if stale & set(needs[name].values()) else set()
    assert plan.unfinished(None) == [name for name in plan.runs if name in stale]


def test_a_file_of_weights_counts_by_what_is_in_it(project, tmp_path):
    path, state = tmp_path / "start.pt", build(net_spec(plan_of(project).runs["other"], 3)).state_dict()
    torch.save(state, path)
    plan = plan_of(project, other={"init_from": str(path)})
    finish(plan, "other")
    assert "other" not in plan.unfinished(None)
    torch.save({**state, "classifier.bias": state["classifier.bias"] + 1}, path)
    assert "other" in plan.unfinished(None)
    plan.check("other")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"^run other: init_from .*start\.pt holds no weights: "):
        plan.check("other")


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
    with pytest.raises(
        ValueError, match="run pupil needs master, which is not trained; run: .* first --scale small --run master"
    ):
        plan.unfinished("pupil")
    assert plan.unfinished("master") == ["master"]
    finish(plan, "master")
    assert plan.unfinished("pupil") == ["pupil"]
    with pytest.raises(ValueError, match="run 'nobody' is unknown; table first has: "):
        make_plan(plan.params, "small", "first", "nobody")


def test_what_another_table_lacks_is_named_with_its_command(project):
    with pytest.raises(ValueError, match="other: there is no such run; run: .*train first --scale small$"):
        plan_of(project, "second")
    plan = plan_of(project)
    finish(plan, "master", "other")
    plan_of(project, "second")
    with pytest.raises(ValueError, match="other: it was trained with other params; run: "):
        plan_of(project, "second", other={"seed": 3})


def test_runs_that_need_each_other_are_refused(project):
    with pytest.raises(ValueError, match="table first: runs need each other: .*master.* <- "):
        plan_of(project, master={"init_from": "pupil"})
    with pytest.raises(ValueError, match="table first: runs need each other: master <- master"):
        plan_of(project, master={"init_from": None, "teacher": "master"})


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


def test_a_teacher_of_another_table_must_fit(project):
    finish(plan_of(project), "master", "other")
    plan_of(project, "second").check("far")
    project["tables"]["second"]["task"] = "stanford_dogs"
    with pytest.raises(ValueError, match="run far: teacher master is of task imagenet, the run of task stanford_dogs"):
        plan_of(project, "second").check("far")
    project["tables"]["second"]["task"] = "imagenet"
    path = plan_of(project).folder("master") / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "num_outputs": 4}))
    with pytest.raises(ValueError, match="run far: teacher master has 4 outputs, the run 3"):
        plan_of(project, "second").check("far")
    path.write_text(json.dumps({**record, "classes": ["r", "b", "g"]}))
    with pytest.raises(ValueError, match="run far: teacher master means 'b' by its output 1, the run 'g'"):
        plan_of(project, "second").check("far")
    path.unlink()
    with pytest.raises(ValueError, match="master: there is no such run; run: .*train first --scale small$"):
        plan_of(project, "second")


def test_nothing_is_trained_where_a_later_row_cannot_be(project, monkeypatch):
    begun = []
    monkeypatch.setattr(train, "_train_row", lambda plan, name, *_: begun.append(name))
    monkeypatch.setattr(train.tracking, "sending", lambda: nullcontext(lambda spool: None))
    good = params(project)
    train.train(good, "small", "first")
    assert begun == list(make_plan(good, "small", "first").runs)
    begun.clear()
    with pytest.raises(ValueError, match="run pupil: init_from other: 'body"):
        train.train(params(project, pupil={"init_from": "other", "width": 0.5}), "small", "first")
    assert begun == []


def test_predictions_are_shared_by_all_that_learn_the_same_and_by_nobody_else(project):
    finish(plan_of(project), "master")

    def kept(name="pupil", code=None, **values):
        plan = plan_of(project, **{name: values})
        return replace(plan, code=code or plan.code).job(name).teacher.teaching.stored

    one = kept()
    assert kept("other", teacher="master", seed=5, width=0.5, resolution=128) == one
    assert kept(code="another") != one, "what a net predicts is a matter of the code too"
    assert kept(precision="bf16-mixed") != one


@pytest.mark.parametrize(("table", "student"), [("first", "pupil"), ("second", "far")])
def test_a_student_is_trained_again_where_its_teacher_sees_other_images(project, table, student):
    """A teacher's central_fraction is how it is evaluated, and what it is asked about; of a student's own it is not."""
    finish(plan_of(project), "master", "other")
    finish(plan_of(project, table), student)
    kept = plan_of(project, table).job(student).teacher.teaching
    runs = project["scales"]["small"]["recipes"]["first"]["runs"]
    augment = project["scales"]["small"]["recipes"][table]["runs"].setdefault(student, {}).setdefault("augment", {})
    augment["central_fraction"] = 0.5
    assert student not in plan_of(project, table).unfinished(None)
    assert plan_of(project, table).job(student).teacher.teaching == kept
    runs["master"] = {"augment": {"central_fraction": 0.5}}
    assert plan_of(project).unfinished("master") == []
    plan = plan_of(project, table)
    assert student in plan.unfinished(None)
    asked = plan.job(student).teacher.teaching
    assert asked.central_fraction == 0.5
    assert asked.stored != kept.stored


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


def test_one_run_alone_asks_for_nothing_that_it_does_not_need(project):
    """Of `second`, whose rows need nets of `first`: only its own."""
    finish(plan_of(project), "other")
    plan = make_plan(params(project), "small", "second", "tuned")
    assert list(plan.runs) == ["tuned"]
    assert plan.unfinished("tuned") == ["tuned"]
    with pytest.raises(ValueError, match="master: there is no such run"):
        make_plan(params(project), "small", "second", "far")


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ({}, {"net": "mobilnet"}, "run other: net 'mobilnet' is unknown; there are: "),
        ({}, {"net": "facenet_nn2", "width": 0.5}, "run other: width is 0.5; facenet_nn2 has no width multiplier"),
        (
            {},
            {"init_from": "master", "frozen": ["body.conv0.", "bod y"]},
            "run other: frozen: no parameter's name begins with 'bod y'; they are: body.conv0.conv.weight, ",
        ),
        ({"task": "faces"}, {}, "task 'faces' is unknown; there are: face_attributes, "),
        ({}, {"net": "ssd300_mobilenet", "width": 1.0}, "run other: net is 'ssd300_mobilenet'; task imagenet needs "),
        (
            {"num_outputs": 91},
            {"augment": {"min_object_shares": [0.5]}},
            "run other: augment.min_object_shares is set, but .* has no objects",
        ),
        ({}, {"images_per_identity": 4}, "run other: images_per_identity is set, but .* has no identities"),
        ({"task": "face_attributes"}, {}, "run other: .* has no labels for task face_attributes; it needs a teacher"),
    ],
)
def test_what_could_only_fail_later_is_refused_at_once(project, table, row, message):
    project["tables"]["first"].update(table)
    plan = plan_of(project, other=row)
    with pytest.raises(ValueError, match=message):
        plan.check("other")


def test_a_record_of_an_earlier_version_is_a_run_to_train_again(project):
    plan = plan_of(project)
    finish(plan, "master")
    path = plan.folder("master") / "run.json"
    record = json.loads(path.read_text())
    del record["run"]["optimizer"]["rule"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="master: it was trained with other params; run: "):
        trained(plan.params, "small", "master")
