"""What a search is made of: the space and its draws, what is held out, the trials; nothing is trained."""

import csv
import json
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import paths
from pipelines.config import _merge, load
from pipelines.shards import Index, Split, read_fields, read_index, write_shard
from pipelines.training.run import Run
from pipelines.tune import main
from pipelines.tuning.held_out import HELD_OUT, TRAIN, border, write_parts
from pipelines.tuning.outcome import best_text, write_outcome
from pipelines.tuning.search import Options, make_search, rungs_of
from pipelines.tuning.space import changed, check_space, default_space, draw, nested, parse_space, searchable
from pipelines.tuning.trial import FAILED, STOPPED, Rung, clear
from tests.tuning import ROOT, SCALE, write_project

RATE = "optimizer.learning_rate"


@pytest.fixture(scope="module")
def run():
    return load(ROOT / "params.yaml").runs("imagenet", "sample")["imagenet_w025_r128"]


@pytest.fixture
def project(tiny_shards, tmp_path, monkeypatch):
    """The working folder of a project on the tiny data; returns its params."""
    monkeypatch.chdir(write_project(tmp_path, tiny_shards))
    return load()


def search_of(project, name="row", *texts, **options):
    return make_search(project, SCALE, name, Options(texts or (f"{RATE}=log:0.001:1",), **options))


# The space


ranges = st.tuples(st.floats(1e-6, 1e3), st.floats(1.01, 1e6)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@given(st.sampled_from(["log", "uniform"]), ranges, st.floats(0, 1, exclude_max=True))
def test_a_range_gives_short_numbers_within_it(kind, ends, share):
    low, high = ends
    (law,) = parse_space([f"x={kind}:{low!r}:{high!r}"]).values()
    value = law.at(share)
    assert low <= value <= high
    assert value in ends or float(f"{value:.4g}") == value


@given(ranges)
def test_a_logarithm_has_its_geometric_mean_in_the_middle(ends):
    low, high = ends
    (law,) = parse_space([f"x=log:{low!r}:{high!r}"]).values()
    assert law.at(0.5) == pytest.approx((low * high) ** 0.5, rel=1e-3)


@given(st.lists(st.sampled_from([1, 2.5, None, True, "none", "wait", -3]), min_size=1, unique_by=repr), st.data())
def test_a_choice_gives_what_was_written(options, data):
    text = ",".join(option if isinstance(option, str) else json.dumps(option) for option in options)
    (law,) = parse_space([f"x=choice:{text}"]).values()
    assert list(law.options) == options
    shares = [(number + 0.5) / len(options) for number in range(len(options))]
    assert [law.at(share) for share in shares] == options


@given(st.text())
@settings(max_examples=300)
def test_whatever_is_written_is_a_law_or_one_line(text):
    try:
        space = parse_space([text])
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 or "\n" in text or not text.isprintable()
        assert str(error).startswith("--search")
    else:
        assert len(space) == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("width", "--search 'width' must be KEY=log:LOW:HIGH, KEY=uniform:LOW:HIGH or KEY=choice:A,B,..."),
        ("width=gauss:0:1", "law 'gauss' is unknown; there are: log, uniform, choice"),
        ("width=log:0:1", "the low end is 0; of a logarithm it must be above 0"),
        ("width=uniform:1:0.5", "a range is LOW:HIGH, two numbers, the lower one first"),
        ("width=uniform:1", "a range is LOW:HIGH"),
        ("width=uniform:a:1", "'a' is not a number"),
        ("width=uniform:0:inf", "'inf' is not finite"),
        ("width=choice:1,,2", "an option is empty"),
    ],
)
def test_a_law_that_is_none(text, error):
    with pytest.raises(ValueError, match="--search") as caught:
        parse_space([text])
    assert error in str(caught.value)


def test_a_key_that_comes_twice():
    with pytest.raises(ValueError, match="--search width: it is given twice"):
        parse_space(["width=choice:1", "width=choice:0.5"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("optimizer.rate=log:0.1:1", r"optimizer.rate: run imagenet_w025_r128 has no such value .* it has: .*width"),
        ("epochs=choice:1,2", "run imagenet_w025_r128 has no such value"),  # is the budget
        ("decode_threads=choice:1,2", "has no such value"),  # changes no result
        ("optimizer=choice:1", "has no such value"),
        ("optimizer.decay=uniform:0.5:1.5", r"optimizer.rmsprop.decay: .* less than or equal to 1 \(given: 1.5\)"),
        ("batch_size=choice:16,0", r"batch_size: .* greater than 0 \(given: 0\)"),
        ("batch_size=choice:16,x", r"batch_size: .* valid integer .*'x'"),
        ("resolution=choice:128,130", "resolution 130 is not a multiple of 4"),
        ("num_workers=choice:1,2", "kind local has 1 worker, not num_workers 2"),
    ],
)
def test_what_a_run_may_not_have_is_refused_before_anything_else(run, text, error):
    with pytest.raises(ValueError, match=f"--search .*{error}"):
        check_space(run, parse_space([text]))


def test_the_default_space_fits_every_run():
    params = load(ROOT / "params.yaml")
    for scale in params.scales:
        for table in params.tables:
            for one in params.runs(table, scale).values():
                space = default_space(one)
                check_space(one, space)
                assert (space.keys() >= {RATE, "optimizer.weight_decay", "schedule.decay_rate"}) is True
                assert ("optimizer.decay" in space) is (one.optimizer.rule == "rmsprop")


def test_the_default_rate_is_around_the_runs_own(run):
    assert default_space(run)[RATE].options == (pytest.approx(0.0045), pytest.approx(0.45))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_more_trials_begin_with_the_same_ones(run, trials, more, seed):
    space = default_space(run)
    some, all_of_them = draw(run, space, trials, seed), draw(run, space, trials + more, seed)
    assert len(some) == trials
    assert all_of_them[:trials] == some
    assert some[0] == {key: searchable(run)[key] for key in space}


def test_draws_fill_the_space_and_depend_on_the_seed(run):
    space = parse_space(["width=choice:0.25,0.5,0.75,1.0", f"{RATE}=uniform:0:1"])
    drawn = draw(run, space, 65, seed=0)[1:]
    assert sorted(Counter(values["width"] for values in drawn).values()) == [16, 16, 16, 16]  # Halton, base 2
    thirds = Counter(int(3 * values[RATE]) for values in drawn)
    assert min(thirds.values()) >= 20
    assert drawn != draw(run, space, 65, seed=1)[1:]


def test_a_changed_run_differs_in_these_values_alone(run):
    varied = changed(run, {"width": 0.5, RATE: 0.3}, "here")
    assert isinstance(varied, Run)
    assert (varied.width, varied.optimizer.learning_rate) == (0.5, 0.3)
    assert changed(varied, {"width": run.width, RATE: run.optimizer.learning_rate}, "here") == run


# What is held out


def shards_of(folder, sizes):
    """Shards with so many samples each, of which none is an image."""
    from pipelines.shards import Stored

    first, shards = 0, []
    for number, size in enumerate(sizes):
        samples = (
            Stored(key, bytes([key % 251]) * (key % 7 + 1), json.dumps({"name": key}).encode(), 5, 6)
            for key in range(first, first + size)
        )
        shards.append(write_shard(folder, f"train-{number:06d}", samples))
        first += size
    index = Index("made", (), {"train": Split(first, tuple(shards))}, {}, {})
    (folder / "index.json").write_bytes(index.to_json())
    return index


def names(folder, split):
    return [
        fields["name"] for shard in read_index(folder).splits[split].shards for fields in read_fields(folder, shard)
    ]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1))
@settings(max_examples=40, deadline=None)
def test_the_two_parts_have_every_sample_once_and_the_last_tenth_is_held_out(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("shards")
    index = shards_of(folder, sizes)
    parts = write_parts(folder, index, folder / "parts")
    train, held_out = names(folder / "parts", TRAIN), names(folder / "parts", HELD_OUT)
    assert train + held_out == list(range(sum(sizes)))
    assert len(held_out) == max(1, round(0.1 * sum(sizes)))
    assert parts.splits.keys() == {TRAIN, HELD_OUT}
    assert write_parts(folder, index, folder / "again") == parts  # of the same bytes: it holds their digests


def test_trials_read_the_very_images_of_the_data(tiny_shards, tmp_path):
    from pipelines.training.reader import SplitReader

    write_parts(tiny_shards, read_index(tiny_shards), tmp_path / "parts")
    whole = SplitReader(tiny_shards, "train")
    images = [bytes(image) for image, _ in whole.read(np.arange(96))]
    found = []
    for split, count in ((TRAIN, 86), (HELD_OUT, 10)):
        found += [bytes(image) for image, _ in SplitReader(tmp_path / "parts", split).read(np.arange(count))]
    assert found == images
    assert (tmp_path / "parts" / "train-000000.tar").is_symlink()  # two of three shards take no space


def test_one_sample_cannot_be_parted():
    with pytest.raises(ValueError, match="1 sample is too few to hold some out"):
        border(1)


def test_the_split_that_a_table_tests_on_is_never_measured_on(project):
    search = search_of(project, trials=1)
    assert search.measured.split == HELD_OUT
    assert search.trials[0].job.shards == search.measured.shards
    assert search.trials[0].job.num_samples == 86
    assert search.measured.samples == 10


def test_a_val_split_that_no_table_tests_on_is_measured_on(project):
    table = project.tables["first"]
    other = table.model_copy(update={"test": table.test.model_copy(update={"split": "test"})})
    search = search_of(project.model_copy(update={"tables": {"first": other}}), trials=1)
    assert (search.measured.split, search.measured.samples) == ("val", 30)
    assert search.trials[0].job.num_samples == 96
    assert "val split of tiny" in search.measured.rule


@pytest.mark.parametrize("tested", [False, True])
def test_data_without_labels_are_measured_on_the_tests_val_split(project, tiny_shards, tmp_path, monkeypatch, tested):
    """As the faces that nobody has labelled."""
    bare = tmp_path / "bare"
    bare.mkdir()
    index = shards_of(bare, [9, 3])
    monkeypatch.setattr(paths, "shards", lambda scale, name: bare if name == "bare" else tiny_shards)
    from pipelines.plan import make_plan
    from pipelines.tuning.held_out import part

    datasets = project.scales[SCALE].datasets
    scale = project.scales[SCALE].model_copy(update={"datasets": {**datasets, "bare": datasets["tiny"]}})
    table = project.tables["first"]
    test = table.test if tested else table.test.model_copy(update={"split": "test"})
    table = table.model_copy(update={"dataset": "bare", "test": test, "runs": {"row": table.runs["row"]}})
    params = project.model_copy(update={"tables": {"first": table}, "scales": {SCALE: scale}})
    plan = make_plan(params, SCALE, "first", "row")
    if tested:
        with pytest.raises(ValueError, match="has no labels, and .* no split val that no table tests on"):
            part(plan, tmp_path / "parts")
        return
    shards, its_index, measured = part(plan, tmp_path / "parts")
    assert (shards, its_index) == (bare, index)
    assert (measured.shards, measured.split, measured.samples) == (tiny_shards, "val", 30)
    assert measured.test_set.classes == ("r", "g", "b")


# Trials


@given(st.integers(1, 200), st.integers(2, 5))
def test_rungs_are_epochs_that_grow_up_to_the_end(epochs, reduction):
    rungs = rungs_of(float(epochs), reduction)
    assert rungs[-1] == epochs
    assert rungs[:-1] == [reduction**power for power in range(len(rungs) - 1)]
    assert len(rungs) == 1 or rungs[-2] < epochs <= rungs[-2] * reduction


def test_a_run_of_less_than_an_epoch_has_one_rung():
    assert rungs_of(0.3, 3) == [0.3]


def test_trials_get_the_values_drawn(project):
    texts = (f"{RATE}=log:0.001:1", "width=choice:0.25,0.5", "schedule.decay_rate=uniform:0.5:1")
    search = search_of(project, "row", *texts, trials=5, epochs=4)
    drawn = draw(search.run, parse_space(texts), 5, seed=0)
    assert [trial.values for trial in search.trials] == drawn
    for trial in search.trials:
        run = trial.job.run
        assert {
            RATE: run.optimizer.learning_rate,
            "width": run.width,
            "schedule.decay_rate": run.schedule.decay_rate,
        } == (trial.values)
        assert run.epochs == 4
        assert changed(run, drawn[0], "here") == search.run  # and no other value
    jobs = [trial.job for trial in search.trials]
    assert len({job.folder for job in jobs}) == len({job.name for job in jobs}) == 5


def test_rungs_lie_at_whole_updates_and_the_end_is_the_runs_own(project):
    (trial,) = search_of(project, trials=1, epochs=4, reduction=2).trials
    assert trial.epochs == [1, 2, 4]
    assert [trial.steps(epoch) for epoch in trial.epochs] == [11, 22, 43]  # 86 images, 8 a step


def test_a_rung_that_only_the_last_update_reaches_is_none(project):
    (trial,) = search_of(project, trials=1, epochs=1.01).trials
    assert trial.epochs == [1.01]


def test_the_same_command_is_the_same_search_and_another_is_another(project):
    first = search_of(project, trials=2)
    assert search_of(project, trials=3).folder == first.folder
    assert search_of(project, trials=2, concurrent=1).folder == first.folder
    others = [{"seed": 1}, {"epochs": 2}, {"reduction": 2}, {"metric": "top5"}, {"mode": "min"}]
    folders = {search_of(project, trials=2, **options).folder for options in others}
    folders.add(search_of(project, "row", f"{RATE}=log:0.001:2", trials=2).folder)
    assert len(folders | {first.folder}) == len(others) + 2


@pytest.mark.parametrize("name", ["pupil", "tuned"])
def test_a_run_whose_origin_is_not_trained_is_refused(project, name):
    with pytest.raises(ValueError, match=f"run {name} needs row, which is not trained; run: python -m pipelines.train"):
        search_of(project, name)


def test_a_trial_that_cannot_be_built_is_refused_before_any_is_trained(project):
    with pytest.raises(
        ValueError, match=r"trial 00\d \(net ssd300_vgg\): run row: width is 0.25; ssd300_vgg has no width"
    ):
        search_of(project, "row", "net=choice:mobilenet,ssd300_vgg", trials=8)


@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.slow
def test_a_halted_training_is_the_same_as_a_straight_one(project, tmp_path, one_thread, average):
    """Bit for bit, at its end and, against a run of that length, at each rung."""
    import torch

    from pipelines.training.loop import train_local
    from pipelines.tuning.climb import train_up_to

    texts = (f"optimizer.weight_average=choice:{json.dumps(average)}",)
    trial = search_of(project, "row", *texts, trials=2, epochs=3, reduction=2).trials[1]
    trial.begin()
    for epoch in trial.epochs:
        train_up_to(trial, epoch)
        straight = replace(trial.job, folder=tmp_path / f"straight_{epoch:g}")
        straight = replace(straight, run=straight.run.model_copy(update={"epochs": trial.steps(epoch) * 8 / 86}))
        assert straight.total_steps == trial.steps(epoch)
        straight.folder.mkdir()
        train_local(straight)
        one, other = (torch.load(job.folder / "weights.pt", weights_only=True) for job in (trial.job, straight))
        floats = [name for name in one if one[name].is_floating_point()]
        assert floats
        assert all(torch.equal(one[name], other[name]) for name in floats), epoch


# What is left


def reach(search, number, *values, **ended):
    """Leave a trial as if it had reached so many rungs."""
    trial = search.trials[number]
    trial.begin()
    rungs = [
        Rung(epoch, value, {"top1": value, "top5": 1 - value, "samples": 10}, 1.5, time.time(), decided=True)
        for epoch, value in zip(trial.epochs, values, strict=False)
    ]
    trial.write(rungs)
    if ended:
        trial.end(**ended)


@pytest.fixture
def ended(project):
    """Four trials: one at its end, one stopped, one better at its end, one failed."""
    texts = (f"{RATE}=log:0.001:1", "width=choice:0.25,0.5", "optimizer.clip_norm=choice:null,2")
    search = search_of(project, "row", *texts, trials=4)
    reach(search, 0, 0.3, 0.5)
    reach(search, 1, 0.9, status=STOPPED)
    reach(search, 2, 0.4, 0.7)
    reach(search, 3, status=FAILED, why="it is not finite")
    return search


def test_the_best_is_the_best_of_those_that_came_to_the_end(ended):
    assert ended.best() is ended.trials[2]
    assert replace(ended, options=ended.options._replace(mode="min")).best() is ended.trials[0]


def test_a_failed_trial_is_tried_again_and_no_other(ended):
    assert ended.pending == [ended.trials[3]]
    ended.trials[3].begin()
    assert ended.trials[3].ended is None
    assert ended.pending == [ended.trials[3]]


def test_an_unknown_metric_says_which_there_are(ended):
    metrics = {"top1": 0.5, "top5": 0.9, "samples": 10}
    assert ended.compared(metrics) == 0.5
    assert replace(ended, options=ended.options._replace(metric="top5")).compared(metrics) == 0.9
    search = replace(ended, options=ended.options._replace(metric="mean_ap"))
    with pytest.raises(ValueError, match="--metric mean_ap is unknown; task imagenet has: samples, top1, top5"):
        search.compared(metrics)


def test_what_is_no_number_cannot_be_compared(ended):
    with pytest.raises(ValueError, match="top1 is nan"):
        ended.compared({"top1": float("nan")})


def test_trials_csv_has_every_trial(ended):
    write_outcome(ended)
    with (ended.results / "trials.csv").open() as file:
        records = list(csv.DictReader(file))
    assert [record["status"] for record in records] == ["finished", "stopped", "finished", "failed"]
    assert [record["top1"] for record in records] == ["0.5", "0.9", "0.7", ""]
    assert [record["epochs"] for record in records] == ["3.0", "1", "3.0", "0"]
    assert records[3]["why"] == "it is not finite"
    assert [float(record[RATE]) for record in records] == [trial.values[RATE] for trial in ended.trials]
    assert {path.name for path in ended.results.iterdir()} == {"trials.csv", "best.yaml", "trials.png", "trials.svg"}


def test_best_yaml_makes_params_yaml_train_the_best_trial(ended):
    block = yaml.safe_load(best_text(ended, ended.trials[2]))
    path = ended.plan.shards.parents[5] / "params.yaml"
    params = yaml.safe_load(path.read_text())
    recipe = params["scales"][SCALE]["recipes"]["first"]
    recipe["runs"] = _merge(recipe["runs"], block)
    path.write_text(yaml.safe_dump(params))
    assert load(path).runs("first", SCALE)["row"] == ended.trials[2].job.run
    assert "trial 002 of 4: top1 0.7 after 3 epochs" in best_text(ended, ended.trials[2])


def test_the_picture_greys_those_that_were_stopped(ended):
    write_outcome(ended)
    svg = (ended.results / "trials.svg").read_text()
    assert "stroke: #bbbbbb" in svg
    assert svg.count("stroke-width: 2.5") >= 1


def test_an_ended_trial_keeps_its_record_and_not_its_checkpoints(ended):
    trial = ended.trials[0]
    for name in ("checkpoint.pt", "weights.pt", "server_0.pt", "curve.jsonl", "ray/x/y"):
        (trial.job.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (trial.job.folder / name).touch()
    clear(trial)
    assert {path.name for path in trial.job.folder.iterdir()} == {"rungs.json", "curve.jsonl"}


def test_nested():
    assert nested({"width": 1, "a.b": 2, "a.c.d": 3}) == {"width": 1, "a": {"b": 2, "c": {"d": 3}}}


# ASHA after a kill


def test_asha_is_told_what_was_reached_before(ended):
    from pipelines.tuning.asha import _Past, _scheduler

    scheduler = _scheduler(ended)  # has seen 0.3, 0.9 and 0.4 at epoch 1
    verdicts = {}
    for value in (0.3, 0.95):
        trial = _Past(f"new {value}")
        scheduler.on_trial_add(None, trial)
        verdicts[value] = scheduler.on_trial_result(None, trial, {"epoch": 1, "value": value})
    assert verdicts == {0.3: "STOP", 0.95: "CONTINUE"}


def test_a_rung_that_is_not_decided_on_is_not_told(project):
    from pipelines.tuning.asha import _Past, _scheduler

    search = search_of(project, trials=2)
    reach(search, 1, 0.9)
    trial = search.trials[1]
    trial.write([replace(rung, decided=False) for rung in trial.rungs])
    scheduler, first = _scheduler(search), _Past("first")
    scheduler.on_trial_add(None, first)
    assert scheduler.on_trial_result(None, first, {"epoch": 1, "value": 0.1}) == "CONTINUE"


# MLflow


@pytest.mark.slow
def test_a_run_waits_for_the_one_that_it_is_shown_below(tmp_path, monkeypatch):
    """As when the sending of the one above went wrong: nothing is lost, and nothing is sent to stand alone."""
    from pipelines import tracking
    from pipelines.tracking import sender
    from pipelines.tracking.client import connect
    from pipelines.tracking.spool import read_record

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)

    def begin(name, tags):
        tracking.begin(
            tmp_path / name,
            experiment="first",
            name=name,
            params={},
            tags=tags,
            data=tracking.Data("tiny", "0" * 64, "here"),
            curve=tmp_path / f"{name}.jsonl",
            commit_steps=1,
        )
        return tmp_path / name

    above = begin("above", {})
    below = begin("below", {tracking.PARENT: read_record(above).id})
    failures = sender.look(tracking.store(), [below])
    assert failures == {below: "RuntimeError: below: the run above it is not there yet"}
    assert sender.look(tracking.store(), [above, below]) == {}
    experiment = connect().get_experiment_by_name("first")
    runs = {run.info.run_name: run for run in connect().search_runs([experiment.experiment_id])}
    assert runs.keys() == {"above", "below"}
    assert runs["below"].data.tags["mlflow.parentRunId"] == runs["above"].info.run_id


# The command


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["rowe"], "error: run 'rowe' is unknown; there are: row, pupil, tuned"),
        (["row", "--search", "widht=choice:1"], "error: --search widht: run row has no such value to search; it has: "),
        (["row", "--search", "width=uniform:-1:1"], "error: --search width=uniform:-1:1: width: "),
        (["row", "--epochs", "0"], "error: run row: epochs: Input should be greater than 0 (given: 0.0)"),
        (["row", "--scale", "huge"], "error: scale 'huge' is unknown; there are: small"),
        (["pupil"], "error: run pupil needs row, which is not trained; run: python -m pipelines.train first --scale"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(project, capsys, arguments, error):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(error)
